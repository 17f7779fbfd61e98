//! Reads JSON as runc does, whose parser is Go's encoding/json: `null` is the same as a missing field, the names of
//! fields match in any case, and text after the object is not read.
//!
//! Engines write lists and objects without content as `null`, because the types of runtime-spec are Go's. Only names of
//! typed fields match in any case; keys of maps (`annotations`, `linux.sysctl`) are data.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor,
};

/// Parses `text`.
///
/// # Errors
///
/// The text is not JSON, or a value has a wrong type. The error names line and column.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    T::deserialize(Lenient { json: &mut json })
}

/// Converts a parsed value.
///
/// # Errors
///
/// The value, or a value in it, has a wrong type.
pub fn from_value<T: DeserializeOwned>(value: &serde_json::Value) -> serde_json::Result<T> {
    T::deserialize(Lenient { json: value })
}

/// Names of a structure's fields; none for a map.
type Fields = &'static [&'static str];

/// A deserializer, or the seed of a value that one deserializes.
struct Lenient<D> {
    json: D,
}

/// The meaning of `null`: Go's zero value of the requested type.
#[derive(Clone, Copy)]
enum Zero {
    Unit,
    Bool,
    Number,
    Text,
    List,
    Object,
}

/// Defines methods of [`Deserializer`] that read a value of any type, with the value for `null` and the fields.
macro_rules! any {
    ($($method:ident($($argument:ident: $type:ty),*) $zero:ident $fields:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            $(let _ = $argument;)*
            self.json.deserialize_any(Values { visitor, zero: Zero::$zero, fields: $fields })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Lenient<D> {
    type Error = D::Error;

    any! {
        deserialize_any() Unit &[];
        deserialize_bool() Bool &[];
        deserialize_i8() Number &[];
        deserialize_i16() Number &[];
        deserialize_i32() Number &[];
        deserialize_i64() Number &[];
        deserialize_u8() Number &[];
        deserialize_u16() Number &[];
        deserialize_u32() Number &[];
        deserialize_u64() Number &[];
        deserialize_f32() Number &[];
        deserialize_f64() Number &[];
        deserialize_char() Text &[];
        deserialize_str() Text &[];
        deserialize_string() Text &[];
        deserialize_bytes() Text &[];
        deserialize_byte_buf() Text &[];
        deserialize_unit() Unit &[];
        deserialize_unit_struct(name: &'static str) Unit &[];
        deserialize_seq() List &[];
        deserialize_tuple(length: usize) List &[];
        deserialize_tuple_struct(name: &'static str, length: usize) List &[];
        deserialize_map() Object &[];
        deserialize_struct(name: &'static str, fields: Fields) Object fields;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.json.deserialize_option(Values { visitor, zero: Zero::Unit, fields: &[] })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: Fields,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.json.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.json.deserialize_identifier(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.json.deserialize_ignored_any(visitor)
    }
}

/// Passes a value to `visitor`.
struct Values<V> {
    visitor: V,
    zero: Zero,
    fields: Fields,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Values<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        match self.zero {
            Zero::Unit => self.visitor.visit_unit(),
            Zero::Bool => self.visitor.visit_bool(false),
            Zero::Number => self.visitor.visit_u64(0),
            Zero::Text => self.visitor.visit_str(""),
            Zero::List => self.visitor.visit_seq(Nothing(std::marker::PhantomData)),
            Zero::Object => self.visitor.visit_map(Nothing(std::marker::PhantomData)),
        }
    }
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }
    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Lenient { json })
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<V::Value, E> {
        self.visitor.visit_bool(value)
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<V::Value, E> {
        self.visitor.visit_i64(value)
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        self.visitor.visit_u64(value)
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        self.visitor.visit_f64(value)
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        self.visitor.visit_str(value)
    }
    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        self.visitor.visit_borrowed_str(value)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Items(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Entries { entries, fields: self.fields })
    }
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(data)
    }
}

/// The content of `null`.
struct Nothing<E>(std::marker::PhantomData<E>);

impl<'de, E: Error> SeqAccess<'de> for Nothing<E> {
    type Error = E;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, _seed: T) -> Result<Option<T::Value>, E> {
        Ok(None)
    }
}

impl<'de, E: Error> MapAccess<'de> for Nothing<E> {
    type Error = E;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _seed: K) -> Result<Option<K::Value>, E> {
        Ok(None)
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, _seed: T) -> Result<T::Value, E> {
        Err(E::custom("no value"))
    }
}

/// The items of a list.
struct Items<A>(A);

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Lenient { json: seed })
    }
}

/// The entries of an object.
struct Entries<A> {
    entries: A,
    fields: Fields,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        if self.fields.is_empty() {
            return self.entries.next_key_seed(seed);
        }
        match self.entries.next_key_seed(Name(self.fields))? {
            // No field has an empty name: a structure skips it.
            Some(name) => seed.deserialize(StrDeserializer::new(name.unwrap_or_default())).map(Some),
            None => Ok(None),
        }
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.entries.next_value_seed(Lenient { json: seed })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Lenient<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<S::Value, D::Error> {
        self.json.deserialize(Lenient { json })
    }
}

/// Finds the field that a key names.
struct Name(Fields);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let exact = self.0.iter().find(|field| **field == name);
        Ok(exact.or_else(|| self.0.iter().find(|field| field.eq_ignore_ascii_case(name))).copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Sample {
        flag: bool,
        number: u16,
        some_text: String,
        list: Vec<String>,
        table: BTreeMap<String, i64>,
        inner: Option<Box<Sample>>,
    }

    fn sample(text: &str) -> Sample {
        from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn null_is_the_zero_value_of_every_type() {
        let null = r#"{"flag":null,"number":null,"someText":null,"list":null,"table":null,"inner":null}"#;
        assert_eq!(sample(null), Sample::default());
        assert_eq!(sample("null"), Sample::default());
        let nested = sample(&format!(r#"{{"inner":{null},"list":[null,"a"],"table":{{"A":null}}}}"#));
        assert_eq!(nested.inner, Some(Box::default()));
        assert_eq!((nested.list, nested.table["A"]), (vec![String::new(), "a".to_owned()], 0));
    }

    #[test]
    fn fields_match_in_any_case_and_keys_of_maps_are_data() {
        let of = sample(r#"{"SomeText":"a","NUMBER":7,"table":{"Key":1,"key":2},"unknown":{"list":5}}"#);
        assert_eq!((of.some_text.as_str(), of.number), ("a", 7));
        assert_eq!(of.table.keys().collect::<Vec<_>>(), ["Key", "key"]);
    }

    #[test]
    fn text_after_the_object_is_not_read() {
        assert_eq!(sample("{\"number\":1}\n}").number, 1);
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, message) in [
            ("{\n \"list\": 5}", "invalid type: integer `5`, expected a sequence at line 2 column 10"),
            ("{\"number\": 65536}", "invalid value: integer `65536`, expected u16 at line 1 column 16"),
            ("{\"flag\":true,\"Flag\":false}", "duplicate field `flag` at line 1 column 19"),
            ("{", "EOF while parsing an object at line 1 column 1"),
        ] {
            assert_eq!(from_slice::<Sample>(text.as_bytes()).unwrap_err().to_string(), message, "{text}");
        }
    }
}
