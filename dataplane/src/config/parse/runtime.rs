//! Runtime values: `layered_runtime` flattened to one map, later layers over earlier ones.
//!
//! Values change only with the configuration, so whoever parses a `runtime_key` asks once and keeps the answer.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use envoy_types::pb::envoy::config::bootstrap::v3::{LayeredRuntime, RuntimeLayer};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::ParseContext;

/// Every runtime value by its dotted key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runtime {
    values: BTreeMap<Box<str>, RuntimeValue>,
}

/// One runtime value.
#[derive(Clone, Debug, PartialEq)]
pub enum RuntimeValue {
    /// A number; Envoy reads whole ones as integers.
    Number(f64),
    /// `true` or `false`.
    Boolean(bool),
    /// Anything else.
    Text(Box<str>),
    /// A message with `numerator` and `denominator`.
    Fraction(Fraction),
}

/// A chance: `numerator` in `denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    /// How many of `denominator`.
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Fraction {
    /// Always.
    pub const ALWAYS: Self = Self { numerator: 100, denominator: 100 };

    /// Whether an event with the evenly distributed `random` is in the fraction.
    pub fn includes(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

impl From<&FractionalPercent> for Fraction {
    fn from(percent: &FractionalPercent) -> Self {
        let denominator = match percent.denominator() {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Self { numerator: percent.numerator, denominator }
    }
}

/// Flattens the layers of `config` into the context's runtime.
pub fn parse(config: &LayeredRuntime, context: &mut ParseContext) {
    let mut names: Vec<&str> = Vec::new();
    for (index, layer) in config.layers.iter().enumerate() {
        context.within_item("layers", index, |context| {
            if context.non_empty("name", &layer.name).is_ok() && names.contains(&layer.name.as_str()) {
                let _ = context.reject("name", format!("another layer is called `{}`", layer.name));
            }
            match &layer.layer_specifier {
                Some(LayerSpecifier::StaticLayer(values)) => context.runtime.add_layer(values),
                // Empty until `/runtime_modify` fills it.
                Some(LayerSpecifier::AdminLayer(_)) => {}
                Some(LayerSpecifier::DiskLayer(_)) => {
                    let _ = context.reject("disk_layer", "runtime from files is not there yet in this version");
                }
                Some(LayerSpecifier::RtdsLayer(_)) => {
                    let _ = context.reject("rtds_layer", "runtime discovery is not there yet in this version");
                }
                None => drop(context.reject("static_layer", "a layer must say what it is")),
            }
        });
        names.push(&layer.name);
    }
    let is_admin = |layer: &&RuntimeLayer| matches!(layer.layer_specifier, Some(LayerSpecifier::AdminLayer(_)));
    if config.layers.iter().filter(is_admin).count() > 1 {
        let _ = context.reject("layers", "there is more than one admin layer");
    }
}

impl Runtime {
    /// Puts `layer` over what is there; nested structs become dotted keys.
    pub fn add_layer(&mut self, layer: &Struct) {
        for (key, value) in &layer.fields {
            self.add(key, value);
        }
    }

    /// Every key and value, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RuntimeValue)> {
        self.values.iter().map(|(key, value)| (&**key, value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&RuntimeValue> {
        self.values.get(key)
    }

    /// The boolean at `key`; `default` where there is none.
    pub fn boolean(&self, key: &str, default: bool) -> bool {
        match self.get(key) {
            Some(RuntimeValue::Boolean(value)) => *value,
            Some(RuntimeValue::Number(value)) => *value != 0.0,
            _ => default,
        }
    }

    /// The number at `key`; `default` where there is none.
    pub fn number(&self, key: &str, default: f64) -> f64 {
        match self.get(key) {
            Some(RuntimeValue::Number(value)) => *value,
            _ => default,
        }
    }

    /// The whole number at `key`; `default` where there is none.
    pub fn integer(&self, key: &str, default: u64) -> u64 {
        match self.get(key) {
            Some(RuntimeValue::Number(value)) if *value >= 0.0 && value.fract() == 0.0 => *value as u64,
            _ => default,
        }
    }

    /// The fraction at `key`: a message as it stands, an integer as percent; `default` where there is neither.
    /// Source: envoy.config.core.v3.RuntimeFractionalPercent.
    pub fn fraction(&self, key: &str, default: Fraction) -> Fraction {
        match self.get(key) {
            Some(RuntimeValue::Fraction(fraction)) => *fraction,
            Some(RuntimeValue::Number(value)) if *value >= 0.0 && value.fract() == 0.0 => {
                Fraction { numerator: *value as u32, denominator: 100 }
            }
            _ => default,
        }
    }

    fn add(&mut self, key: &str, value: &Value) {
        let value = match &value.kind {
            Some(Kind::NumberValue(number)) => RuntimeValue::Number(*number),
            Some(Kind::BoolValue(boolean)) => RuntimeValue::Boolean(*boolean),
            Some(Kind::StringValue(text)) => scalar(text),
            Some(Kind::StructValue(fields)) => match as_fraction(fields) {
                Some(fraction) => RuntimeValue::Fraction(fraction),
                None => {
                    for (name, inner) in &fields.fields {
                        self.add(&format!("{key}.{name}"), inner);
                    }
                    return;
                }
            },
            Some(Kind::NullValue(_) | Kind::ListValue(_)) | None => return,
        };
        self.values.insert(key.into(), value);
    }
}

/// Text that spells a number or boolean counts as one, as in Envoy.
fn scalar(text: &str) -> RuntimeValue {
    match text {
        "true" => RuntimeValue::Boolean(true),
        "false" => RuntimeValue::Boolean(false),
        _ => text.parse().map_or_else(|_| RuntimeValue::Text(text.into()), RuntimeValue::Number),
    }
}

fn as_fraction(fields: &Struct) -> Option<Fraction> {
    if !fields.fields.contains_key("numerator") && !fields.fields.contains_key("denominator") {
        return None;
    }
    let numerator = match fields.fields.get("numerator").and_then(|value| value.kind.as_ref()) {
        Some(Kind::NumberValue(number)) if *number >= 0.0 && number.fract() == 0.0 => *number as u32,
        None => 0,
        _ => return None,
    };
    let denominator = match fields.fields.get("denominator").and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(name)) => DenominatorType::from_str_name(name)?,
        None => DenominatorType::Hundred,
        _ => return None,
    };
    Some(Fraction::from(&FractionalPercent { numerator, denominator: denominator.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(fields: Vec<(&str, Kind)>) -> Struct {
        let fields = fields.into_iter().map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
        Struct { fields: fields.collect() }
    }

    #[test]
    fn later_layers_win_and_structs_become_dotted_keys() {
        let mut runtime = Runtime::default();
        runtime.add_layer(&object(vec![
            ("a", Kind::StructValue(object(vec![("b", Kind::NumberValue(5.0)), ("c", Kind::BoolValue(true))]))),
            ("text", Kind::StringValue("words".into())),
            ("half", Kind::StructValue(object(vec![("numerator", Kind::NumberValue(50.0))]))),
        ]));
        runtime.add_layer(&object(vec![("a.b", Kind::NumberValue(7.0))]));
        let keys: Vec<&str> = runtime.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a.b", "a.c", "half", "text"]);
        assert_eq!(runtime.integer("a.b", 0), 7);
        assert!(runtime.boolean("a.c", false));
        assert_eq!(runtime.fraction("half", Fraction::ALWAYS), Fraction { numerator: 50, denominator: 100 });
        assert_eq!(runtime.fraction("a.b", Fraction::ALWAYS), Fraction { numerator: 7, denominator: 100 });
        assert_eq!(runtime.fraction("text", Fraction::ALWAYS), Fraction::ALWAYS);
    }
}
