package fanout

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// A proof is what the catalog of one database says of a shape.
type proof struct {
	pure       bool        // whatever the statement can reach is immutable or stable, or else
	why        string      // why not, in a phrase for people
	parameters []parameter // nil if one of the types cannot travel
}

// proofSQL asks the catalog about a shape. The parameters are its names (text[]), its operators (text[]), the types of its
// parameters (oid[]), those of the names that may call any function and those that may call one of a row (text[]), and the
// types that anything is cast to, that parameters of types of somebody's own are, and that literals and other parameters are
// (text[]), as proofArgs makes them. The result is one row, for readProof.
//
// It goes by names alone, in whatever schema and with whatever arguments: what a name means in the statement, only the
// server's parser could tell, and depends on the search_path. So it can find too much, such as a volatile function that is
// called like a column of a sub-select, but not too little. From the names it follows what the server would evaluate, at
// any depth:
//
//   - the relations' children and, where they are views or have row security, the stored trees of these;
//   - the functions' default arguments, also stored trees;
//   - the functions behind the operators that are written and those that SQL's own syntax stands for;
//   - the functions that an aggregate is made of.
//
// Some things are evaluated without being named: checks of domains, functions of casts and of types, and those that sort and
// hash. They take part if their types do. A type takes part if it is named, which the row types of relations are too, if it
// is one of the parameters', of a function's arguments and results, of an operator's, or occurs in a tree; or if it is made
// of such a type or such a type of it, as a column, an element, a bound of a range or what a domain restricts; or if such a
// type, or one that came with the server, becomes one by itself. Types that came with the server (their OID is below 16384)
// always take part, so nothing is asked about these.
//
// A cast that nobody else does is done where it is written only, and to the type that is written or what that is made of,
// and by functions that make JSON of anything, or text: || and quote_literal do, by a cast in a query of theirs. But those
// that assignments do are done by conditions, limits and subscripts too.
//
// Trees are read by a regular expression, because pg_depend does not know of what came with the server, such as random(). In
// a tree a space within a name is escaped, so nobody's name looks like a field.
//
// A stable function is taken at its word. But some that others have written run a query that they are given as a string,
// and are called stable all the same; so are those that show a whole table as XML. And a few of the server's own are stable
// within one statement, but tell one statement from several, or another, as no one could who runs them one by one:
//
//   - pg_current_xact_id and txid_current give the transaction an id; each execution would have had its own;
//   - pg_stat_get_activity, which pg_stat_activity shows, pg_stat_get_backend_activity and pg_cursor return the statement's
//     text, and pg_prepared_statement the session's statements;
//   - pg_column_size returns how a value is stored, which is not the same for a parameter and an element of an array.
//
// What depends on the time or the snapshot is not among them: now(), statement_timestamp(), pg_current_snapshot() and the
// statistics may be the same for several executions that run at the same time on several connections, too.
//
// A parameter of which nothing is said has no type while the server chooses a function for it, and a column has one. Calls
// take notice of that which have the name of a type of strings: there f($1) is $1::f, but the function f if there is one and
// the argument is known to be an f.
//
// Sets are passed on as arrays where they would do as tables: the planner takes an array for ten elements, and would otherwise
// multiply its guesses until the statement seemed worth compiling, for a second.
//
// It reads world-readable columns that PostgreSQL 13 to 18 all have; one of multiranges, which 13 does not know, as JSON. It
// names the schema of everything, so it means the same under every search_path, and it contains no backslash, so under every
// standard_conforming_strings.
const proofSQL = `
with recursive reach(class, object) as (
	select pg_catalog.split_part(seed, ' ', 1), pg_catalog.split_part(seed, ' ', 2)::pg_catalog.oid
	from pg_catalog.unnest(array(
		select pg_catalog.concat('relation ', c.oid)
		from pg_catalog.pg_class c
		where c.relname operator(pg_catalog.=) any ($1::pg_catalog.text[]::pg_catalog.name[])
		union all
		select pg_catalog.concat('function ', p.oid)
		from pg_catalog.pg_proc p
		where p.proname operator(pg_catalog.=) any ($4::pg_catalog.text[]::pg_catalog.name[])
			-- Procedures, trigger functions, handlers and what takes an internal argument cannot be called by a query.
			and p.prokind operator(pg_catalog.<>) 'p'
			and p.prorettype operator(pg_catalog.<>) all ('{269,325,2279,2280,2281,3115,3310,3838}'::pg_catalog.oid[])
			and not (2281::pg_catalog.oid operator(pg_catalog.=) any (p.proargtypes))
		union all
		-- An attribute that a row does not have is a function of the row, or of what a row becomes by itself.
		select pg_catalog.concat('function ', p.oid)
		from pg_catalog.pg_proc p
		join pg_catalog.pg_type t on t.oid operator(pg_catalog.=) case
			when p.pronargs operator(pg_catalog.=) 1::pg_catalog.int2 and p.provariadic operator(pg_catalog.<>) 0::pg_catalog.oid
			then p.provariadic else p.proargtypes[0] end
		where p.proname operator(pg_catalog.=) any ($5::pg_catalog.text[]::pg_catalog.name[])
			and p.prokind operator(pg_catalog.<>) 'p'
			and p.pronargs operator(pg_catalog.>=) 1::pg_catalog.int2
			and p.pronargs operator(pg_catalog.-) p.pronargdefaults operator(pg_catalog.<=) 1::pg_catalog.int2
			and (t.typcategory operator(pg_catalog.=) any ('{C,P}'::pg_catalog."char"[]) and t.oid operator(pg_catalog.<>) 2281::pg_catalog.oid
				or exists (
					select from pg_catalog.pg_cast c
					join pg_catalog.pg_type y on y.oid operator(pg_catalog.=) c.castsource
					where c.casttarget operator(pg_catalog.=) t.oid and c.castcontext operator(pg_catalog.=) 'i'
						and y.typcategory operator(pg_catalog.=) 'C'))
		union all
		-- AT TIME ZONE, EXTRACT, OVERLAPS and so on are functions of pg_catalog, where an extension may have put others.
		select pg_catalog.concat('function ', p.oid)
		from pg_catalog.pg_proc p
		where p.proname operator(pg_catalog.=) any ('{timezone,overlaps,extract,date_part,overlay,position,substring,btrim,
				ltrim,rtrim,normalize,is_normalized,pg_collation_for,like_escape,similar_to_escape,similar_escape,
				xmlexists,unnest}'::pg_catalog.name[])
			and p.pronamespace operator(pg_catalog.=) 11::pg_catalog.oid and p.oid operator(pg_catalog.>=) 16384::pg_catalog.oid
		union all
		select pg_catalog.concat('type ', t.oid)
		from pg_catalog.pg_type t
		where t.typname operator(pg_catalog.=) any ($1::pg_catalog.text[]::pg_catalog.name[])
			and t.oid operator(pg_catalog.>=) 16384::pg_catalog.oid
		union all
		select pg_catalog.concat(class, ' ', t.oid)
		from pg_catalog.unnest('{type,parameter}'::pg_catalog.text[]) class
		cross join pg_catalog.unnest($3::pg_catalog.oid[]) t(oid)
		where t.oid operator(pg_catalog.>=) 16384::pg_catalog.oid
		union all
		-- Of two literals, the operators that text has too take these for text, unless the operator's schema is written. So if
		-- such an operator is of one type alone, one of its operands is of this type by another way.
		select pg_catalog.concat('type ', t.oid)
		from pg_catalog.pg_operator o
		cross join lateral pg_catalog.unnest(case
			when o.oprleft operator(pg_catalog.=) o.oprright
				and o.oprname operator(pg_catalog.=) any ('{=,<>,<,<=,>,>=,~,!~,~*,!~*,~~,!~~,~~*,!~~*}'::pg_catalog.name[])
				and 'operator' operator(pg_catalog.<>) all ($1::pg_catalog.text[])
			then array[o.oprresult] else array[o.oprleft, o.oprright, o.oprresult] end) t(oid)
		where o.oid operator(pg_catalog.>=) 16384::pg_catalog.oid and t.oid operator(pg_catalog.>=) 16384::pg_catalog.oid and (
			o.oprname operator(pg_catalog.=) any ($2::pg_catalog.text[]::pg_catalog.name[])
			or o.oprname operator(pg_catalog.=) any ('{=,<>,<,<=,>,>=,~,!~,~*,!~*,~~,!~~,~~*,!~~*,^}'::pg_catalog.name[]))
		union all
		select pg_catalog.concat('type ', c.casttarget)
		from pg_catalog.pg_cast c
		where c.castcontext operator(pg_catalog.=) 'i' and c.castsource operator(pg_catalog.<) 16384::pg_catalog.oid
			and c.casttarget operator(pg_catalog.>=) 16384::pg_catalog.oid
		union all
		select pg_catalog.concat('target ', t.oid)
		from pg_catalog.pg_type t
		where t.typname operator(pg_catalog.=) any ($6::pg_catalog.text[]::pg_catalog.name[])
		union all
		select pg_catalog.concat('parametertarget ', t.oid)
		from pg_catalog.pg_type t
		where t.typname operator(pg_catalog.=) any ($7::pg_catalog.text[]::pg_catalog.name[])
		union all
		select pg_catalog.concat('literaltarget ', t.oid)
		from pg_catalog.pg_type t
		where t.typname operator(pg_catalog.=) any ($8::pg_catalog.text[]::pg_catalog.name[])
	)) seed
	union
	select pg_catalog.split_part(found, ' ', 1), pg_catalog.split_part(found, ' ', 2)::pg_catalog.oid
	from reach r
	cross join lateral pg_catalog.unnest(array(
		select pg_catalog.concat('relation ', i.inhrelid)
		from pg_catalog.pg_inherits i
		where r.class operator(pg_catalog.=) 'relation' and i.inhparent operator(pg_catalog.=) r.object
		union all
		select pg_catalog.unnest(array(
			select pg_catalog.concat(
				case
					when m[1] is not null then m[1]
					when m[2] operator(pg_catalog.=) 'relid' then 'relation'
					when m[2] operator(pg_catalog.=) any ('{opno,opnos,eqop,sortop,cycle_mark_neop}'::pg_catalog.text[]) then 'operator'
					else 'function'
				end, ' ', pg_catalog.unnest(pg_catalog.string_to_array(coalesce(pg_catalog.btrim(m[3]), '0'), ' ')))
			from pg_catalog.regexp_matches(tree collate pg_catalog."default",
				'[{](ROWMARKCLAUSE|TABLESAMPLECLAUSE|NEXTVALUEEXPR) |:(relid'
				'|funcid|opfuncid|hashfuncid|negfuncid|aggfnoid|winfnoid|startInRangeFunc|endInRangeFunc'
				'|opno|opnos|eqop|sortop|cycle_mark_neop) (?:[(]o )?([0-9][0-9 ]*)', 'g') m
			union all
			-- Numbers from 10000 on: there are thousands of others. In lists there are few.
			select pg_catalog.concat('type ', o.id)
			from pg_catalog.regexp_matches(tree collate pg_catalog."default",
				'[tT]ype?s?(?:[iI]d)? ([0-9]{5,}|[(]o [0-9 ]+)', 'g') m
			cross join lateral pg_catalog.unnest(
				pg_catalog.string_to_array(pg_catalog.btrim(m[1], '(o '), ' ')::pg_catalog.oid[]) o(id)
			where o.id operator(pg_catalog.>=) 16384::pg_catalog.oid
		))
		from pg_catalog.unnest(array(
			select w.ev_action::pg_catalog.text
			from pg_catalog.pg_rewrite w
			join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) w.ev_class
			where r.class operator(pg_catalog.=) 'relation' and w.ev_class operator(pg_catalog.=) r.object
				and w.ev_type operator(pg_catalog.=) '1' and c.relkind operator(pg_catalog.=) 'v'
			union all
			select o.polqual::pg_catalog.text
			from pg_catalog.pg_policy o
			join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) o.polrelid
			where r.class operator(pg_catalog.=) 'relation' and o.polrelid operator(pg_catalog.=) r.object and c.relrowsecurity
			union all
			select p.proargdefaults::pg_catalog.text
			from pg_catalog.pg_proc p
			where r.class operator(pg_catalog.=) 'function' and p.oid operator(pg_catalog.=) r.object
			union all
			select k.conbin::pg_catalog.text
			from pg_catalog.pg_constraint k
			where r.class operator(pg_catalog.=) 'type' and k.contypid operator(pg_catalog.=) r.object
		)) tree
		union all
		-- Of a function that came with the server, so did the types.
		select pg_catalog.concat('type ', t.oid)
		from pg_catalog.pg_proc p
		left join pg_catalog.pg_aggregate a on a.aggfnoid::pg_catalog.oid operator(pg_catalog.=) p.oid
		cross join lateral pg_catalog.unnest(p.proallargtypes operator(pg_catalog.||) p.proargtypes::pg_catalog.oid[]
			operator(pg_catalog.||) array[p.prorettype, p.provariadic, a.aggtranstype, a.aggmtranstype]) t(oid)
		where r.class operator(pg_catalog.=) 'function' and r.object operator(pg_catalog.>=) 16384::pg_catalog.oid
			and p.oid operator(pg_catalog.=) r.object and t.oid operator(pg_catalog.>=) 16384::pg_catalog.oid
		union all
		select pg_catalog.concat('type ', c.casttarget)
		from pg_catalog.pg_cast c
		where r.class operator(pg_catalog.=) 'type' and c.castsource operator(pg_catalog.=) r.object
			and c.castcontext operator(pg_catalog.=) 'i' and c.casttarget operator(pg_catalog.>=) 16384::pg_catalog.oid
		union all
		select pg_catalog.concat(r.class, ' ', t.oid)
		from (
			select pg_catalog.unnest(array[y.typbasetype, y.typelem, y.typarray])
			from pg_catalog.pg_type y
			where y.oid operator(pg_catalog.=) r.object
			union all
			select a.atttypid
			from pg_catalog.pg_type y
			join pg_catalog.pg_attribute a on a.attrelid operator(pg_catalog.=) y.typrelid
			where y.oid operator(pg_catalog.=) r.object and y.typrelid operator(pg_catalog.<>) 0::pg_catalog.oid
				and a.attnum operator(pg_catalog.>) 0::pg_catalog.int2
			union all
			select pg_catalog.unnest(array[g.rngtypid, g.rngsubtype, m.oid])
			from pg_catalog.pg_type y
			cross join pg_catalog.pg_range g
			cross join lateral (select (pg_catalog.to_jsonb(g.*) operator(pg_catalog.->>) 'rngmultitypid')::pg_catalog.oid) m(oid)
			where y.oid operator(pg_catalog.=) r.object and y.typtype operator(pg_catalog.=) any ('{r,m}'::pg_catalog."char"[])
				and y.oid operator(pg_catalog.=) any (array[g.rngtypid, m.oid])
		) t(oid)
		where r.class operator(pg_catalog.=) any ('{type,parameter,target,parametertarget,literaltarget}'::pg_catalog.text[])
			and t.oid operator(pg_catalog.>=) case when r.class operator(pg_catalog.=) any ('{type,parameter}'::pg_catalog.text[])
				then 16384::pg_catalog.oid else 1::pg_catalog.oid end
	)) found
), functions(oid) as (
	select r.object from reach r where r.class operator(pg_catalog.=) 'function'
	union
	-- IN, BETWEEN, CASE x WHEN, USING, LIKE and so on are operators. Those of an operator class need not be called = or <. In
	-- place of an operator its commutator or its negator may be evaluated.
	select n.oprcode::pg_catalog.oid
	from pg_catalog.pg_operator o
	cross join lateral pg_catalog.unnest(array[o.oid, o.oprcom, o.oprnegate]) m(oid)
	join pg_catalog.pg_operator n on n.oid operator(pg_catalog.=) m.oid
	where o.oid operator(pg_catalog.=) any (array(select object from reach where class operator(pg_catalog.=) 'operator'))
		or o.oid operator(pg_catalog.>=) 16384::pg_catalog.oid and (
			o.oprname operator(pg_catalog.=) any ($2::pg_catalog.text[]::pg_catalog.name[])
			or o.oprname operator(pg_catalog.=) any ('{=,<>,<,<=,>,>=,~,!~,~*,!~*,~~,!~~,~~*,!~~*,^}'::pg_catalog.name[]))
	union
	select f.oid
	from pg_catalog.pg_type t
	cross join lateral pg_catalog.unnest(array[t.typinput, t.typoutput, t.typreceive, t.typsend, t.typmodin,
		t.typmodout]::pg_catalog.oid[]) f(oid)
	where t.oid operator(pg_catalog.=) any (array(select object from reach where class operator(pg_catalog.=) 'type'))
	union
	select f.oid
	from pg_catalog.pg_range g
	cross join lateral pg_catalog.unnest(array[g.rngcanonical, g.rngsubdiff]::pg_catalog.oid[]) f(oid)
	where g.rngtypid operator(pg_catalog.=) any (array(select object from reach where class operator(pg_catalog.=) 'type'))
	union
	select c.castfunc
	from pg_catalog.pg_cast c
	where c.oid operator(pg_catalog.>=) 16384::pg_catalog.oid
		and (c.castsource operator(pg_catalog.<) 16384::pg_catalog.oid
			or c.castsource operator(pg_catalog.=) any (array(select object from reach where class operator(pg_catalog.=) 'type')))
		and case
			when c.castcontext operator(pg_catalog.<>) 'e' or c.castsource operator(pg_catalog.=) c.casttarget
				or c.casttarget operator(pg_catalog.=) any ('{25,114,3802}'::pg_catalog.oid[])
			then c.casttarget operator(pg_catalog.<) 16384::pg_catalog.oid or c.casttarget operator(pg_catalog.=)
				any (array(select object from reach where class operator(pg_catalog.=) 'type'))
			else c.casttarget operator(pg_catalog.=) any (array(select object from reach where class operator(pg_catalog.=) 'target'))
				or c.casttarget operator(pg_catalog.=)
					any (array(select object from reach where class operator(pg_catalog.=) 'parametertarget'))
				and (c.castsource operator(pg_catalog.<) 16384::pg_catalog.oid or c.castsource operator(pg_catalog.=)
					any (array(select object from reach where class operator(pg_catalog.=) 'parameter')))
				or c.casttarget operator(pg_catalog.=)
					any (array(select object from reach where class operator(pg_catalog.=) 'literaltarget'))
				and c.castsource operator(pg_catalog.<) 16384::pg_catalog.oid
		end
	union
	-- The access methods btree and hash: what sorts, groups and finds duplicates, whether or not there is an index.
	select a.function
	from (
		select p.oid, p.amproc::pg_catalog.oid, y.opfmethod, array[p.amproclefttype, p.amprocrighttype]
		from pg_catalog.pg_amproc p
		join pg_catalog.pg_opfamily y on y.oid operator(pg_catalog.=) p.amprocfamily
		union all
		select p.oid, o.oprcode::pg_catalog.oid, p.amopmethod, array[p.amoplefttype, p.amoprighttype]
		from pg_catalog.pg_amop p
		join pg_catalog.pg_operator o on o.oid operator(pg_catalog.=) p.amopopr
	) a(oid, function, method, types)
	where a.oid operator(pg_catalog.>=) 16384::pg_catalog.oid
		and a.method operator(pg_catalog.=) any ('{403,405}'::pg_catalog.oid[])
		and not exists (select from pg_catalog.unnest(a.types) t(oid)
			where t.oid operator(pg_catalog.>=) 16384::pg_catalog.oid and t.oid operator(pg_catalog.<>)
				all (array(select object from reach where class operator(pg_catalog.=) 'type')))
), parts(oid) as (
	select oid from functions
	union
	select f.oid
	from pg_catalog.pg_aggregate a
	left join pg_catalog.pg_operator o on o.oid operator(pg_catalog.=) a.aggsortop
	cross join lateral pg_catalog.unnest(array[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn,
		a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn, o.oprcode]::pg_catalog.oid[]) f(oid)
	where a.aggfnoid operator(pg_catalog.=) any (array(select oid from functions))
), reasons(why) as (
	select pg_catalog.format('function %s is volatile', p.oid::pg_catalog.regprocedure)
	from pg_catalog.pg_proc p
	where p.oid operator(pg_catalog.=) any (array(select oid from parts))
		and p.provolatile operator(pg_catalog.<>) all ('{i,s}'::pg_catalog."char"[])
	union all
	select pg_catalog.format('function %s may run any query', p.oid::pg_catalog.regprocedure)
	from pg_catalog.pg_proc p
	where p.oid operator(pg_catalog.=) any (array(select oid from functions)) and p.proname operator(pg_catalog.~)
		'^(table|schema|database|query|cursor)_to_xml|^(crosstab|connectby|xpath_table|ts_stat|ts_rewrite|dblink)'
		and p.pronargs operator(pg_catalog.>) 0::pg_catalog.int2
		and not (p.proname operator(pg_catalog.=) 'ts_rewrite' and p.pronargs operator(pg_catalog.=) 3::pg_catalog.int2)
	union all
	-- By the name of a type, a parameter is cast; if it is known to be of this type, such a function is called.
	select pg_catalog.format('function %s is called like a type', p.oid::pg_catalog.regprocedure)
	from pg_catalog.pg_proc p
	join pg_catalog.pg_type t on t.typname operator(pg_catalog.=) p.proname
		and t.oid operator(pg_catalog.=) any (array[p.proargtypes[0], p.provariadic])
	where p.proname operator(pg_catalog.=) any ($4::pg_catalog.text[]::pg_catalog.name[])
		and t.oid operator(pg_catalog.=) any ($3::pg_catalog.oid[])
		and p.pronargs operator(pg_catalog.-) p.pronargdefaults operator(pg_catalog.<=) 1::pg_catalog.int2
	union all
	select pg_catalog.format('function %s tells one statement from several', p.oid::pg_catalog.regprocedure)
	from pg_catalog.pg_proc p
	where p.oid operator(pg_catalog.=) any (array(select oid from functions)) and p.oid operator(pg_catalog.<) 16384::pg_catalog.oid
		and p.proname operator(pg_catalog.=) any ('{pg_current_xact_id,txid_current,pg_stat_get_activity,
			pg_stat_get_backend_activity,pg_prepared_statement,pg_cursor,pg_column_size}'::pg_catalog.name[])
	union all
	select pg_catalog.format('relation %s is %s', c.oid::pg_catalog.regclass, case
		when c.relkind operator(pg_catalog.=) 'f' then 'a foreign table'
		when c.relkind operator(pg_catalog.=) 'S' then 'a sequence'
		else 'of an unknown kind' end)
	from pg_catalog.pg_class c
	where c.oid operator(pg_catalog.=) any (array(select object from reach where class operator(pg_catalog.=) 'relation'))
		and c.relkind operator(pg_catalog.<>) all ('{r,p,m,v,i,I,c,t}'::pg_catalog."char"[])
	union all
	select case
		when r.class operator(pg_catalog.=) 'ROWMARKCLAUSE' then 'a view locks rows'
		when r.class operator(pg_catalog.=) 'TABLESAMPLECLAUSE' then 'a view samples a table'
		else 'a sequence is advanced' end
	from reach r
	where r.class operator(pg_catalog.<>) all ('{relation,function,operator,type,parameter,target,parametertarget,
		literaltarget}'::pg_catalog.text[])
), contents(ord, type) as (
	select p.ord, p.type
	from pg_catalog.unnest($3::pg_catalog.oid[]) with ordinality p(type, ord)
	union
	select c.ord, inside.type
	from contents c
	join pg_catalog.pg_type t on t.oid operator(pg_catalog.=) c.type
	cross join lateral pg_catalog.unnest(array(
		select t.typelem
		union all
		select t.typbasetype
		union all
		select r.rngsubtype
		from pg_catalog.pg_range r
		where r.rngtypid operator(pg_catalog.=) t.oid
		union all
		select a.atttypid
		from pg_catalog.pg_attribute a
		where a.attrelid operator(pg_catalog.=) t.typrelid and a.attnum operator(pg_catalog.>) 0::pg_catalog.int2
			and not a.attisdropped
	)) inside(type)
), arguments(parameters) as (
	select case when pg_catalog.bool_and(a."array" is not null)
		then pg_catalog.json_agg(pg_catalog.json_build_array(a."array"::pg_catalog.int8, a.name, a.delimiter) order by a.ord)
		end
	from (
		select p.ord, t.typtype operator(pg_catalog.=) any ('{b,c,d,e,m,r}'::pg_catalog."char"[]) as known,
			t.typcategory operator(pg_catalog.=) any ('{A,C}'::pg_catalog."char"[]) as nested,
			t.typarray, t.typdelim, pg_catalog.format('%I.%I', s.nspname, t.typname) as name,
			-- Cast from text, an array forgets a collation that is not the default one.
			t.typtype operator(pg_catalog.=) 'd'
				or t.typcollation operator(pg_catalog.=) any ('{0,100}'::pg_catalog.oid[]) as collated
		from pg_catalog.unnest($3::pg_catalog.oid[]) with ordinality p(type, ord)
		left join pg_catalog.pg_type t on t.oid operator(pg_catalog.=) p.type and t.typisdefined
		left join pg_catalog.pg_namespace s on s.oid operator(pg_catalog.=) t.typnamespace
	) p
	cross join lateral (
		select p.ord,
			case
				when not p.known then null
				when not p.nested then case when p.typarray operator(pg_catalog.<>) 0::pg_catalog.oid then p.typarray end
				-- The text form of these does not mean what the binary form does, which pgx would have sent: a name is cut off
				-- instead of refused, an encoding that xml declares goes unheeded, a float64 is not rounded to a real, and
				-- a negative time is one.
				when p.collated and not exists (
					select from contents c
					where c.ord operator(pg_catalog.=) p.ord and c.type operator(pg_catalog.=) any ('{19,142,700,1083,1560,1562}'::pg_catalog.oid[])
				) and not exists (
					-- A cast to a domain over varchar(3)[], say, cuts off what the domain itself refuses.
					select from contents c
					join pg_catalog.pg_type y on y.oid operator(pg_catalog.=) c.type
					where c.ord operator(pg_catalog.=) p.ord and y.typcategory operator(pg_catalog.=) 'A' and y.typtypmod operator(pg_catalog.<>) -1
				) and not exists (
					-- A cast of somebody's own from text would be used in place of the type's input function.
					select from pg_catalog.pg_cast c
					join pg_catalog.pg_type y on y.oid operator(pg_catalog.=) c.casttarget
					where c.castsource operator(pg_catalog.=) 25::pg_catalog.oid
						and y.typcategory operator(pg_catalog.=) any ('{A,C}'::pg_catalog."char"[])
				) then 1009::pg_catalog.oid
			end,
			case when p.nested then p.name else '' end,
			case when p.nested then ',' else p.typdelim::pg_catalog.text end
	) a(ord, "array", name, delimiter)
)
select r.why is null, coalesce(r.why, ''), coalesce(a.parameters::pg_catalog.text, '')
from (select pg_catalog.min(why) from reasons) r(why), arguments a`

// A proofState says whether proofSQL is prepared on a connection.
type proofState int

const (
	proofUnknown    proofState = iota
	proofPrepared              // it is
	proofUnprepared            // it is not to be
)

// firstNormalOID is the first of those that did not come with the server.
const firstNormalOID = 16384

// proofArgs are proofSQL's parameters in text format, for parameters of these types.
func (s *shape) proofArgs(params []uint32) [][]byte {
	// Of a literal, the type comes with the server: it gets it from the cast, or is a number.
	var targets, parameterTargets, literalTargets []string
	for _, c := range s.casts {
		switch {
		case c.operand == anyOperand:
			targets = append(targets, c.target...)
		case c.operand == parameterOperand && params[c.number-1] >= firstNormalOID:
			parameterTargets = append(parameterTargets, c.target...)
		default:
			literalTargets = append(literalTargets, c.target...)
		}
	}
	return [][]byte{
		textArray(s.names), textArray(s.operators), textArray(decimals(params)), textArray(s.called), textArray(s.attributes),
		textArray(targets), textArray(parameterTargets), textArray(literalTargets),
	}
}

// decimals are the OIDs as text.
func decimals(oids []uint32) []string {
	texts := make([]string, len(oids))
	for i, oid := range oids {
		texts[i] = strconv.FormatUint(uint64(oid), 10)
	}
	return texts
}

// textArray is an array in text format.
func textArray(elements []string) []byte {
	text := []byte{'{'}
	for i, element := range elements {
		if i > 0 {
			text = append(text, ',')
		}
		text = appendElement(text, element)
	}
	return append(text, '}')
}

// appendElement appends an element of an array in text format.
func appendElement(text []byte, element string) []byte {
	text = append(text, '"')
	for _, c := range []byte(element) {
		if c == '"' || c == '\\' {
			text = append(text, '\\')
		}
		text = append(text, c)
	}
	return append(text, '"')
}

// readProof reads proofSQL's row, its values in text format.
func readProof(row []string) (proof, error) {
	if len(row) != 3 {
		return proof{}, fmt.Errorf("fanout: the catalog's answer has %d columns", len(row))
	}
	p := proof{pure: row[0] == "t", why: row[1]}
	if row[2] == "" {
		return p, nil
	}
	var parameters [][3]json.RawMessage
	if err := json.Unmarshal([]byte(row[2]), &parameters); err != nil {
		return proof{}, fmt.Errorf("fanout: the catalog's answer on parameters: %w", err)
	}
	for _, values := range parameters {
		var read parameter
		var delimiter string
		err := errors.Join(json.Unmarshal(values[0], &read.array), json.Unmarshal(values[1], &read.cast),
			json.Unmarshal(values[2], &delimiter))
		if err == nil && len(delimiter) != 1 {
			err = errors.New("no delimiter")
		}
		if err != nil {
			return proof{}, fmt.Errorf("fanout: the catalog's answer on parameters: %w", err)
		}
		read.delimiter = delimiter[0]
		p.parameters = append(p.parameters, read)
	}
	return p, nil
}
