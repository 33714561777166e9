package fanout

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestOrderingOutside(t *testing.T) {
	for sql, want := range map[string]string{
		"select id, data from t where x = $1 order by id":                               "1, 2",
		"SELECT id, data FROM t WHERE x = $1 ORDER BY DATA DESC NULLS LAST, id asc":     "1, 3 desc nulls last, 2 asc",
		"select a, b from t where x = $1 order by 2, id nulls first":                    "1, 3, 2 nulls first",
		`select a, b from t where x = $1 order by "id", "data"`:                         "1, 2, 3",
		"select t.a, u.b as c from t, u where x = $1 order by u.b, t.a desc":            "1, 3, 2 desc",
		`select t."A", t.b c from t where x = $1 order by t.b, t."A"`:                   "1, 3, 2",
		"select * from t where x = $1 order by id":                                      "1, 2",
		"select *, b from t where x = $1 order by 1":                                    "1, 2",
		"select id as order, data as from from t where x = $1 order by id":              "1, 2",
		"select t.a as isnull, t.b as notnull from t where x = $1 order by t.b, t.a":    "1, 3, 2",
		"select t.limit, data from t where x = $1 order by data":                        "1, 3",
		"select id, data from t where x = (select 1 order by $1 limit 1) order by data": "1, 3",

		// Of what is no column of the result, the statement around knows nothing.
		"select id, data from t where x = $1":                       "",
		"select id, data from t where x = $1 order by other":        "",
		`select id, data from t where x = $1 order by "ID"`:         "",
		"select id, data from t where x = $1 order by 3":            "",
		"select id, data from t where x = $1 order by 0":            "",
		"select id, data from t where x = $1 order by id, other":    "",
		"select id, data from t where x = $1 order by id + 1":       "",
		"select id, data from t where x = $1 order by -id":          "",
		"select id, data from t where x = $1 order by lower(data)":  "",
		"select id, data from t where x = $1 order by data || $1":   "",
		"select id, data from t where x = $1 order by u.id":         "",
		"select t.id, t.data from t where x = $1 order by s.t.id":   "",
		"select t.id + 1, t.data from t where x = $1 order by t.id": "",
		"select *, t.id from t where x = $1 order by t.id":          "",
		"select id, (t).data from t where x = $1 order by t.data":   "",
		"select t.a, t.b, t.c from t where x = $1 order by t.a":     "", // the server has found two
		`select t."A", t.b from t where x = $1 order by t.A`:        "",
		"select t.a isnull, t.b from t where x = $1 order by t.a":   "",
		"select t.a, t.b notnull from t where x = $1 order by t.b":  "",
		"select Ä, data from t where x = $1 order by Ä":             "",

		// Others are not only about the order, or not of the whole, or not by a column.
		"select id, data from t where x = $1 order by data collate \"C\"":           "",
		"select id, data from t where x = $1 order by id using <":                   "",
		"select id, data from t where x = $1 order by id limit 1":                   "",
		"select id, data from t where x = $1 order by id offset 1":                  "",
		"select id, data from t where x = $1 order by id fetch first row only":      "",
		"select distinct id, data from t where x = $1 order by id":                  "",
		"select distinct on (id) id, data from t where x = $1 order by id":          "",
		"select id, data from t where x = $1 union select 1, 2 order by id":         "",
		"select id, data from t where x = $1 group by id, data order by id":         "",
		"select id, generate_series(1, 2) as data from t where x = $1 order by id":  "",
		"select id, data from t where x in (select $1 order by id)":                 "",
		"with t as (select 1 as id, 2 as data) select * from t where $1 order by 1": "",
		"(select id, data from t where x = $1 order by id)":                         "",
		"table t order by id": "",
		"select id as user, data from t where x = $1 order by user":                 "",
		"select id as current_date, data from t where x = $1 order by current_date": "",
	} {
		list, ok := tokens(sql)
		if !ok {
			t.Errorf("%s: no tokens", sql)
			continue
		}
		if want != "" {
			want = "\norder by " + want
		}
		got := orderingOf(sql, list).outside([]pgconn.FieldDescription{{Name: "id"}, {Name: "data"}})
		if got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
}
