"""Generated DuckDB tables in the shape of public data sets: IMDb, wiki pages, TPC-H. Seeded, small.

They have the columns that the queries of `workloads.w_shapes` use. The sizes make a query take
milliseconds, as a warmed-up database server does.
"""

from __future__ import annotations

from pathlib import Path

from workloads.text import WORDS

_WORDS = "[" + ", ".join(f"'{word}'" for word in WORDS) + "]"


def _word(key: str) -> str:
    """SQL for a word that depends on `key`."""
    return f"({_WORDS})[1 + CAST(hash({key}) % {len(WORDS)} AS INTEGER)]"


def _text(key: str, n: int) -> str:
    return " || ' ' || ".join(_word(f"{key} || '/{i}'") for i in range(n))


IMDB = f"""
CREATE TABLE title_basics AS SELECT 'tt' || lpad(i::VARCHAR, 7, '0') AS tconst,
  {_text("'t' || i", 3)} AS primary_title, 1950 + CAST(hash('y' || i) % 75 AS INTEGER) AS
  start_year, {_word("'g' || i")} AS genres FROM range(8000) r(i);
CREATE TABLE title_ratings AS SELECT tconst, round(1 + hash('r' || tconst) % 90 / 10.0, 1)
  AS average_rating, CAST(hash('v' || tconst) % 100000 AS INTEGER) AS num_votes FROM title_basics;
CREATE TABLE title_akas AS SELECT tconst AS title_id, {_text("'a' || tconst || k", 3)} AS title,
  (['US', 'FR', 'DE', 'JP', 'BR', 'IN'])[1 + CAST(k % 6 AS INTEGER)] AS region
  FROM title_basics, range(3) r(k);
CREATE TABLE title_crew AS SELECT tconst, 'nm' || lpad(CAST(hash('d' || tconst) % 6000 AS VARCHAR),
  7, '0') AS directors FROM title_basics;
CREATE TABLE name_basics AS SELECT 'nm' || lpad(i::VARCHAR, 7, '0') AS nconst,
  {_text("'n' || i", 2)} AS primary_name, 1900 + CAST(hash('b' || i) % 105 AS INTEGER) AS
  birth_year,
  (['actor', 'director', 'writer', 'producer', 'editor'])[1 + CAST(hash('p' || i) % 5 AS INTEGER)]
  AS primary_profession FROM range(6000) r(i);
"""
WIKI = f"""
CREATE TABLE pages AS SELECT i AS page_id, {_text("'w' || i", 2)} AS title,
  {_text("'x' || i", 24)} AS wikitext,
  (['en', 'en', 'en', 'fr', 'de', 'es'])[1 + CAST(hash('l' || i) % 6 AS INTEGER)] AS in_language,
  DATE '2020-01-01' + CAST(hash('m' || i) % 2000 AS INTEGER) AS date_modified FROM range(6000) r(i);
"""
TPCH = """
CREATE TABLE region AS SELECT * FROM (VALUES (0, 'AFRICA'), (1, 'AMERICA'), (2, 'ASIA'),
  (3, 'EUROPE'), (4, 'MIDDLE_EAST')) t(r_regionkey, r_name);
CREATE TABLE nation AS SELECT i AS n_nationkey, 'NATION_' || i AS n_name, i % 5 AS n_regionkey
  FROM range(25) r(i);
CREATE TABLE supplier AS SELECT i AS s_suppkey, 'Supplier#' || i AS s_name, i % 25 AS s_nationkey,
  (hash('s' || i) % 1000000) / 100.0 AS s_acctbal FROM range(200) r(i);
CREATE TABLE customer AS SELECT i AS c_custkey, (['AUTOMOBILE', 'BUILDING', 'FURNITURE',
  'HOUSEHOLD', 'MACHINERY'])[1 + CAST(hash('c' || i) % 5 AS INTEGER)] AS c_mktsegment
  FROM range(1500) r(i);
CREATE TABLE part AS SELECT i AS p_partkey, 'Brand#' || (11 + hash('p' || i) % 45) AS p_brand
  FROM range(2000) r(i);
CREATE TABLE orders AS SELECT i AS o_orderkey, hash('o' || i) % 1500 AS o_custkey,
  (hash('t' || i) % 40000000) / 100.0 AS o_totalprice,
  (['1-URGENT', '2-HIGH', '3-MEDIUM', '4-NOT SPECIFIED', '5-LOW'])
  [1 + CAST(hash('q' || i) % 5 AS INTEGER)] AS o_orderpriority FROM range(15000) r(i);
CREATE TABLE lineitem AS SELECT i // 4 AS l_orderkey, hash('u' || i) % 200 AS l_suppkey,
  1 + hash('n' || i) % 50 AS l_quantity, (hash('e' || i) % 9000000) / 100.0 AS l_extendedprice,
  (hash('d' || i) % 11) / 100.0 AS l_discount,
  (['R', 'A', 'N'])[1 + CAST(hash('f' || i) % 3 AS INTEGER)] AS l_returnflag,
  (['O', 'F'])[1 + CAST(hash('g' || i) % 2 AS INTEGER)] AS l_linestatus,
  DATE '1992-01-01' + CAST(hash('h' || i) % 2550 AS INTEGER) AS l_shipdate
  FROM range(60000) r(i);
"""
SCHEMAS = {"imdb": IMDB, "wiki": WIKI, "tpch": TPCH}


def write_tables(name: str, folder: Path) -> Path:
    """The database `name` as a file in `folder`; what is there is kept."""
    import duckdb

    path = folder / f"{name}.duckdb"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(str(path)) as db:
            db.execute(SCHEMAS[name])
    return path
