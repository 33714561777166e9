package fanout

import (
	"bytes"
	sqldriver "database/sql/driver"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgtype"
)

// sameAsText reports whether text is certain to mean the same to the server as the binary form of an argument, which pgx
// would have sent: NULL as an element is a word where array_nulls is off; an interval is read otherwise where IntervalStyle is
// sql_standard; what is given as bytes pgx takes for the text itself; and the binary form of a composite says of which types its
// fields are, so that one is refused whose attributes have changed since pgx has learned them.
func (p *pipeline) sameAsText(oid uint32, arg any, text []byte) bool {
	if known, ok := p.conn.TypeMap().TypeForOID(oid); !ok || ofComposites(known.Codec) {
		return false
	}
	if bytes.Contains(bytes.ToLower(text), []byte("null")) || p.conn.PgConn().ParameterStatus("IntervalStyle") == "sql_standard" {
		return false
	}
	t := reflect.TypeOf(arg)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		return false
	}
	own, known := ownTexts.Load(t)
	if !known {
		own = hasOwnText(t, nil)
		ownTexts.Store(t, own)
	}
	return !own.(bool)
}

// ofComposites reports whether values are composites, or arrays or ranges of them.
func ofComposites(codec pgtype.Codec) bool {
	switch c := codec.(type) {
	case *pgtype.CompositeCodec:
		return true
	case *pgtype.ArrayCodec:
		return ofComposites(c.ElementType.Codec)
	case *pgtype.RangeCodec:
		return ofComposites(c.ElementType.Codec)
	case *pgtype.MultirangeCodec:
		return ofComposites(c.ElementType.Codec)
	}
	return false
}

// ownTexts are the answers of hasOwnText: a program has as many types.
var ownTexts sync.Map

var (
	textValuer   = reflect.TypeFor[pgtype.TextValuer]()
	driverValuer = reflect.TypeFor[sqldriver.Valuer]()
	stringer     = reflect.TypeFor[fmt.Stringer]()
)

// hasOwnText reports whether a method of somebody's own may say what the text form of a value is that is, or is within, a t.
// pgx would have made the binary form of something else then: of the number that has the method, say, or of what pgx reads in
// that text, which is not all that the server does.
func hasOwnText(t reflect.Type, within []reflect.Type) bool {
	if slices.Contains(within, t) {
		return false
	}
	within = append(within, t)
	either := func(method reflect.Type) bool { return t.Implements(method) || reflect.PointerTo(t).Implements(method) }
	switch t.PkgPath() {
	case "time", "net", "net/netip", "math/big":
		return false
	case reflect.TypeFor[pgtype.Map]().PkgPath():
		if either(driverValuer) && !either(textValuer) { // which is for others
			return false
		}
	}
	if either(textValuer) || either(driverValuer) {
		return true
	}
	several := t.Kind() == reflect.Struct || t.Kind() == reflect.Slice || t.Kind() == reflect.Array || t.Kind() == reflect.Map
	if several && either(stringer) {
		return true // pgx asks that first for a text, and reads numbers and strings by their kind
	}
	switch t.Kind() {
	case reflect.Interface:
		return true // could be anything
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return hasOwnText(t.Elem(), within)
	case reflect.Struct:
		for i := range t.NumField() {
			if hasOwnText(t.Field(i).Type, within) {
				return true
			}
		}
	}
	return false
}

// canonical reports whether text is what pgx itself writes for the value that the binary form has: then it means the same
// whoever wrote it. Only of types that pgx reads without loss, of which uuid[] is the one whose Go types (google/uuid,
// gofrs/uuid) have texts of their own.
func (p *pipeline) canonical(oid uint32, binary, text []byte) bool {
	if oid != pgtype.UUIDArrayOID {
		return false
	}
	var value pgtype.Array[pgtype.UUID]
	types := p.conn.TypeMap()
	if types.Scan(oid, pgtype.BinaryFormatCode, binary, &value) != nil || bytes.Contains(text, []byte("NULL")) {
		return false
	}
	own, err := types.Encode(oid, pgtype.TextFormatCode, value, nil)
	return err == nil && bytes.Equal(own, text)
}
