package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/tracelog"
)

// echo logs every statement on w when it has ended, with its arguments.
func echo(w io.Writer) pgx.QueryTracer {
	logger := slog.New(slog.NewTextHandler(w, nil))
	log := &tracelog.TraceLog{
		LogLevel: tracelog.LogLevelInfo,
		Config:   &tracelog.TraceLogConfig{TimeKey: "took"},
		Logger: tracelog.LoggerFunc(func(ctx context.Context, level tracelog.LogLevel, msg string, data map[string]any) {
			logger.LogAttrs(ctx, slogLevel(level), msg, statementAttrs(data)...)
		}),
	}
	return statementTracer{log, log, log}
}

// A statementTracer is the part of a tracelog.TraceLog that deals with statements. The whole of it would log connecting,
// preparing and acquiring as well.
type statementTracer struct {
	pgx.QueryTracer
	pgx.BatchTracer
	pgx.CopyFromTracer
}

// statementAttrs puts what tracelog says into an order, the statement first.
func statementAttrs(data map[string]any) []slog.Attr {
	if table, ok := data["tableName"].(pgx.Identifier); ok {
		columns, _ := data["columnNames"].([]string)
		data["sql"] = fmt.Sprintf("copy %s (%s) from stdin", table.Sanitize(), strings.Join(columns, ", "))
	}
	var attrs []slog.Attr
	for _, key := range []string{"sql", "args", "rowCount", "commandTag", "err", "pid", "took"} {
		if value := data[key]; value != nil {
			attrs = append(attrs, slog.Any(key, value))
		}
	}
	return attrs
}

func slogLevel(level tracelog.LogLevel) slog.Level {
	switch {
	case level <= tracelog.LogLevelError:
		return slog.LevelError
	case level == tracelog.LogLevelWarn:
		return slog.LevelWarn
	case level == tracelog.LogLevelInfo:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}
