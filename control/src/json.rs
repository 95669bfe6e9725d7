//! JSON as strangers write it: a key that is there twice is refused, where a plain parser would let
//! the last win and the first vanish.
//!
//! Owns [`parse`], [`read`] and the words for what they refuse. The API's bodies and DERP maps are read by
//! it; how deep they may go is the parser's own bound.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What parsers call a range of numbers, and what people do.
const RANGES: [(&str, &str); 6] = [
    ("expected u8", "expected a number from 0 to 255"),
    ("expected u16", "expected a number from 0 to 65535"),
    ("expected u32", "expected a number from 0 to 4294967295"),
    ("expected i32", "expected a number from -2147483648 to 2147483647"),
    ("expected u64", "expected a whole number, 0 or more"),
    ("expected i64", "expected a whole number"),
];

/// The value that `text` is.
///
/// # Errors
/// When it is no JSON, or an object in it has a key twice; in words that name the place.
pub(crate) fn parse(text: &[u8]) -> Result<Value, String> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let value = Strict.deserialize(&mut parser).map_err(in_words)?;
    parser.end().map_err(in_words)?;
    Ok(value)
}

/// A `T` out of what [`parse`] gave.
///
/// # Errors
/// When `value` is none; in words that name the field.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let why = in_words(error.inner());
        match error.path().iter().next() {
            Some(_) => format!("{}: {why}", error.path()),
            None => why,
        }
    })
}

/// What is wrong with a value, without the names of our types.
pub(crate) fn in_words(error: impl fmt::Display) -> String {
    let mut text = error.to_string();
    for (name, range) in RANGES {
        text = text.replace(name, range);
    }
    match text.split_once("expected struct ") {
        Some((before, after)) => {
            let place = after.find(" at line ").map_or("", |at| &after[at..]);
            format!("{before}expected an object{place}")
        }
        None => text,
    }
}

/// Reads any value.
#[derive(Clone, Copy)]
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            fields.insert(key, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"x":{"a":[],"\u0061":{}}}]"#] {
            let why = parse(text.as_bytes()).expect_err("it is there twice");
            assert!(why.starts_with("the key \"a\" is there twice at line 1"), "{why}");
        }
    }

    #[test]
    fn everything_else_is_read_as_the_plain_parser_reads_it() {
        let deep = "[".repeat(1000);
        for text in [
            r#"{"a":[null,true,-1,18446744073709551615,12345678901234567890,1e300,0.5,"\ud83d\ude00"]}"#,
            r#"{"a":{"a":{"a":1}},"b":{"a":2}}"#,
            "",
            "{} {}",
            r#"{"a":1e999}"#,
            r#"{"a":"\ud800"}"#,
            deep.as_str(),
        ] {
            let plain = serde_json::from_str::<Value>(text).map_err(in_words);
            assert_eq!(parse(text.as_bytes()), plain, "{text}");
        }
    }

    #[test]
    fn what_is_of_the_wrong_type_is_named_with_its_place() {
        #[derive(Debug, serde::Deserialize)]
        struct Inner {
            #[expect(dead_code, reason = "read, and compared with nothing")]
            port: u16,
        }
        #[derive(Debug, serde::Deserialize)]
        struct Outer {
            #[expect(dead_code, reason = "read, and compared with nothing")]
            nodes: Vec<Inner>,
        }
        for (text, words) in [
            (r#"{"nodes":[{"port":1},{"port":"x"}]}"#, "nodes[1].port: invalid type: string"),
            (r#"{"nodes":[{"port":70000}]}"#, "nodes[0].port: invalid value: integer `70000`"),
            (r#"{"nodes":[{}]}"#, "nodes[0]: missing field `port`"),
            ("{}", "missing field `nodes`"),
            ("[]", "invalid length 0"),
        ] {
            let value = parse(text.as_bytes()).expect("JSON");
            let why = read::<Outer>(value).expect_err("it is of another form");
            assert!(why.starts_with(words), "{text}: {why}");
        }
    }

    #[test]
    fn our_types_are_not_named() {
        assert_eq!(
            in_words("invalid length 0, expected struct Region with 5 elements at line 1 column 2"),
            "invalid length 0, expected an object at line 1 column 2"
        );
        let text = in_words("invalid value: integer `70000`, expected u16");
        assert_eq!(text, "invalid value: integer `70000`, expected a number from 0 to 65535");
    }
}
