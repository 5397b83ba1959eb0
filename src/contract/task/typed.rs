//! Deserializes the fields of a task into a type of the worker, using serde.

use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor,
    value::StrDeserializer,
};
use serde::forward_to_deserialize_any;

use super::{Fields, Malformed};

/// Deserializes `fields` into a struct or map whose members have the names of the fields.
///
/// Text, bytes, and enums without data are taken as they are; numbers, booleans, arrays and objects are parsed as JSON.
/// A missing field or `null` becomes `None` in an `Option`. Unknown fields are ignored unless `T` denies them.
///
/// # Errors
/// Names the field and the expected type.
pub fn parse<T: DeserializeOwned>(fields: &Fields) -> Result<T, Malformed> {
    T::deserialize(FieldsDeserializer(fields)).map_err(|e| Malformed(e.0))
}

#[derive(Debug)]
struct ParseError(String);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseError {}

impl serde::de::Error for ParseError {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("missing field {field:?}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self(format!("unknown field {field:?}; expected {}", expected.join(", ")))
    }
}

struct FieldsDeserializer<'de>(&'de Fields);

impl<'de> Deserializer<'de> for FieldsDeserializer<'de> {
    type Error = ParseError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        visitor.visit_map(Members { fields: self.0, names: self.0.names().into_iter(), at: None })
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ParseError> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The fields, each name once.
struct Members<'de> {
    fields: &'de Fields,
    names: std::vec::IntoIter<&'de str>,
    at: Option<&'de str>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = ParseError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ParseError> {
        self.at = self.names.next();
        self.at.map(|name| seed.deserialize(BorrowedStrDeserializer::new(name))).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ParseError> {
        let name = self.at.unwrap_or_default();
        let value = self.fields.get(name).unwrap_or_default();
        seed.deserialize(FieldDeserializer(value)).map_err(|e| ParseError(format!("field {name:?}: {e}")))
    }
}

struct FieldDeserializer<'de>(&'de [u8]);

impl<'de> FieldDeserializer<'de> {
    fn text(&self) -> Result<&'de str, ParseError> {
        std::str::from_utf8(self.0).map_err(|_| ParseError::custom("not UTF-8"))
    }

    /// Calls `read` with a JSON deserializer of the value.
    fn json<R>(
        &self,
        read: impl FnOnce(&mut serde_json::Deserializer<serde_json::de::SliceRead<'de>>) -> serde_json::Result<R>,
    ) -> Result<R, ParseError> {
        let mut json = serde_json::Deserializer::from_slice(self.0);
        let value = read(&mut json).and_then(|value| json.end().map(|()| value));
        value.map_err(|e| {
            let text = e.to_string();
            let words = text.rfind(" at line ").and_then(|end| text.get(..end)).unwrap_or(&text);
            ParseError(if e.is_data() { words.to_owned() } else { format!("not JSON ({words})") })
        })
    }
}

macro_rules! as_json {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
            self.json(|json| json.$method(visitor))
        }
    )*};
}

impl<'de> Deserializer<'de> for FieldDeserializer<'de> {
    type Error = ParseError;

    /// Text, unless the value is an object or array, so that an ID of digits stays text.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        match self.0.trim_ascii_start().first() {
            Some(b'{' | b'[') => self.json(|json| json.deserialize_any(visitor)),
            _ => self.deserialize_str(visitor),
        }
    }

    as_json! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_unit deserialize_seq deserialize_map
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        visitor.visit_borrowed_bytes(self.0)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        if self.0.trim_ascii() == b"null" { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, ParseError> {
        self.json(|json| json.deserialize_unit_struct(name, visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ParseError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, ParseError> {
        self.json(|json| json.deserialize_tuple(length, visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, ParseError> {
        self.json(|json| json.deserialize_tuple_struct(name, length, visitor))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        members: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ParseError> {
        self.json(|json| json.deserialize_struct(name, members, visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ParseError> {
        match self.0.trim_ascii_start().first() {
            Some(b'{' | b'"') => self.json(|json| json.deserialize_enum(name, variants, visitor)),
            _ => {
                let text: StrDeserializer<'_, ParseError> = self.text()?.into_deserializer();
                text.deserialize_enum(name, variants, visitor)
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseError> {
        visitor.visit_unit()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Level {
        Low,
        High,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Callback {
        query_id: String,
        log_level: u8,
        metadata: BTreeMap<String, u32>,
        level: Level,
        callback_id: Option<String>,
        workflow: Option<Vec<String>>,
        #[serde(default)]
        note: String,
    }

    fn read(changes: &[(&str, &str)]) -> Result<Callback, String> {
        let mut pairs = BTreeMap::from([
            ("query_id", "12345678"),
            ("log_level", "20"),
            ("metadata", r#"{"n": 1}"#),
            ("level", "high"),
            ("unknown", "\u{0}"),
        ]);
        for (name, value) in changes {
            pairs.insert(name, value);
        }
        pairs.retain(|_, value| *value != "gone");
        parse(&pairs.into_iter().collect()).map_err(|e| e.0)
    }

    #[test]
    fn fields_deserialize_into_the_type_of_the_member() {
        let callback = read(&[("workflow", "null"), ("callback_id", "c")]).unwrap();
        let wanted = Callback {
            query_id: "12345678".to_owned(),
            log_level: 20,
            metadata: BTreeMap::from([("n".to_owned(), 1)]),
            level: Level::High,
            callback_id: Some("c".to_owned()),
            workflow: None,
            note: String::new(),
        };
        assert_eq!(callback, wanted);
        assert_eq!(read(&[("workflow", r#"["a"]"#)]).unwrap().workflow, Some(vec!["a".to_owned()]));
    }

    #[test]
    fn errors_name_the_field_and_the_expected_type() {
        for (changes, words) in [
            (&[("query_id", "gone")][..], &["missing field \"query_id\""][..]),
            (&[("log_level", "many")], &["\"log_level\"", "not JSON"]),
            (&[("log_level", "300")], &["\"log_level\"", "300", "u8"]),
            (&[("log_level", "1 2")], &["\"log_level\"", "not JSON"]),
            (&[("metadata", "[]")], &["\"metadata\"", "map"]),
            (&[("level", "middle")], &["\"level\"", "middle", "`low` or `high`"]),
        ] {
            let error = read(changes).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{changes:?} gave {error:?}, wanted {words:?}");
        }
    }

    #[test]
    fn ids_of_digits_stay_text_in_self_describing_types() {
        #[derive(Debug, Deserialize)]
        struct Rest {
            #[serde(flatten)]
            rest: BTreeMap<String, serde_json::Value>,
        }
        let fields: Fields = [("query_id", "12345678"), ("metadata", r#"{"n":1}"#)].into_iter().collect();
        let Rest { rest } = parse(&fields).unwrap();
        assert_eq!((&rest["query_id"], &rest["metadata"]["n"]), (&"12345678".into(), &1.into()));
    }

    #[test]
    fn the_last_duplicate_field_counts_and_binary_names_are_skipped() {
        let fields: Fields = [(&b"a"[..], &b"1"[..]), (b"\xff", b"x"), (b"a", b"2")].into_iter().collect();
        assert_eq!(parse::<BTreeMap<String, u8>>(&fields).unwrap(), BTreeMap::from([("a".to_owned(), 2)]));
        assert_eq!(parse::<()>(&fields), Ok(()));
    }
}
