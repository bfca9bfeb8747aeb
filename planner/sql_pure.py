"""Functions, operators and types of DuckDB whose values follow from their arguments alone.

A list kept here and not the catalogue's: the catalogue also calls consistent what depends on
settings (the time zone), on the session or on the database.
"""

from __future__ import annotations

PURE_FUNCTIONS = frozenset(
    {
        # Operators, as the parser names them.
        *("+", "-", "*", "/", "//", "%", "**", "^", "||", "&", "|", "<<", ">>", "~", "xor"),
        *("~~", "!~~", "~~*", "!~~*", "~~~", "like_escape", "not_like_escape", "ilike_escape"),
        *("not_ilike_escape", "->>"),
        # Numbers.
        *("abs", "add", "subtract", "multiply", "divide", "mod", "fmod", "fdiv", "sign", "round"),
        *("floor", "ceil", "ceiling", "trunc", "even", "sqrt", "cbrt", "pow", "power", "exp"),
        *("ln", "log", "log2", "log10", "pi", "gcd", "lcm", "greatest", "least", "bit_count"),
        # Texts.
        *("lower", "lcase", "upper", "ucase", "trim", "ltrim", "rtrim", "left", "right", "substr"),
        *("substring", "left_grapheme", "right_grapheme", "substring_grapheme", "replace"),
        *("translate", "reverse", "split_part", "length", "len", "char_length", "strlen"),
        *("character_length", "bit_length", "concat", "concat_ws", "contains", "starts_with"),
        *("ends_with", "prefix", "suffix", "instr", "strpos", "position", "ascii", "ord"),
        *("unicode", "chr", "strip_accents", "nfc_normalize", "md5", "sha1", "sha256"),
        *("regexp_matches", "regexp_full_match", "regexp_extract", "regexp_replace"),
        *("regexp_escape", "levenshtein", "editdist3", "damerau_levenshtein", "hamming"),
        *("mismatches", "jaccard", "jaro_similarity", "jaro_winkler_similarity", "hex"),
        *("to_hex", "bin", "to_binary", "parse_filename", "parse_dirname", "parse_dirpath"),
        # Dates and times without a zone.
        *("year", "month", "day", "decade", "century", "millennium", "quarter", "week"),
        *("weekofyear", "yearweek", "isoyear", "dayofweek", "weekday", "isodow", "dayofmonth"),
        *("dayofyear", "hour", "minute", "second", "millisecond", "microsecond", "era"),
        *("monthname", "dayname", "date_part", "datepart", "date_trunc", "datetrunc"),
        *("date_diff", "datediff", "date_sub", "datesub", "date_add", "last_day", "make_date"),
        *("make_timestamp", "epoch", "epoch_ms", "julian", "strftime", "strptime"),
        *("try_strptime", "to_years", "to_quarters", "to_months", "to_weeks", "to_days"),
        *("to_hours", "to_minutes", "to_seconds", "to_milliseconds", "to_microseconds"),
        # Parts of lists and of JSON texts.
        *("string_split", "str_split", "split", "string_to_array", "string_split_regex"),
        *("str_split_regex", "regexp_split_to_array", "list_value", "list_extract"),
        *("list_element", "array_extract", "list_contains", "list_has", "array_contains"),
        *("array_has", "array_length", "array_to_string", "json_extract", "json_extract_path"),
        *("json_extract_string", "json_extract_path_text", "json_value", "json_array_length"),
        *("json_exists", "json_type", "json_valid"),
        # Choices.
        *("if", "nullif"),
    }
)

PURE_OPERATORS = frozenset(
    {
        *("OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE"),
        *("COMPARE_IN", "COMPARE_NOT_IN", "ARRAY_EXTRACT", "ARRAY_SLICE"),
    }
)
"""What the parser calls operators, by type."""

JOINS = frozenset(("||", "concat"))
"""Functions that keep apart what they are given."""

ZONED = ("timestamptz", "timetz", "time zone", "timestamp_tz", "time_tz")
"""What a type's name contains when its texts are read by the time zone, which is a setting."""
