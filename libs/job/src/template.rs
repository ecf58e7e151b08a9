//! Templates: texts with places for a job's data.
//!
//! `{{name}}` stands for the data under that name, `{{a.b}}` for what is below, `{{list.0}}` for an item
//! of a list and `{{}}` for all of it. A name with dots or braces is written in quotes, as JSON writes
//! a string: `{{"a.b".c}}`. `\{{` stands for `{{` itself. Texts appear as they are, everything else as it
//! was written: no number changes, and keys keep their order.

use std::{borrow::Cow, collections::HashMap};

use serde_json::value::RawValue;

use crate::Json;

/// The most places of one template.
const PLACES_MAX: usize = 1_000;

/// A template that was parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Placeholder(Placeholder),
}

/// A placeholder for data.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Placeholder {
    /// As it is written.
    name: String,
    /// From the outermost name to the innermost.
    path: Vec<String>,
}

impl Template {
    /// Parses a template, which errors call `field`.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn parse(field: &str, text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let (mut rest, mut plain, mut places) = (text, String::new(), 0);
        while let Some(at) = rest.find("{{") {
            if let Some(before) = rest[..at].strip_suffix('\\') {
                plain.push_str(before);
                plain.push_str("{{");
                rest = &rest[at + 2..];
                continue;
            }
            plain.push_str(&rest[..at]);
            let (placeholder, behind) = placeholder(field, &rest[at + 2..])?;
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(Part::Placeholder(placeholder));
            places += 1;
            if places > PLACES_MAX {
                return Err(format!("{field} has more than {PLACES_MAX} places for data"));
            }
            rest = behind;
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }

    /// The text with `data` in its places, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// A sentence that names what the data lacks, or the bound.
    pub fn fill(&self, data: &Json, bytes_max: usize) -> Result<String, String> {
        let root: &RawValue = serde_json::from_str(data.get())
            .map_err(|error| format!("the job's data cannot be read: {error}"))?;
        let mut found: HashMap<&Placeholder, Cow<'_, str>> = HashMap::new();
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Placeholder(placeholder) => {
                    if !found.contains_key(placeholder) {
                        found.insert(placeholder, value(root, placeholder)?);
                    }
                    text.push_str(&found[placeholder]);
                }
            }
            if text.len() > bytes_max {
                return Err(format!("the text would be larger than {bytes_max} bytes"));
            }
        }
        Ok(text)
    }
}

/// Parses a placeholder behind its braces; returns it with the text behind it.
fn placeholder<'t>(field: &str, text: &'t str) -> Result<(Placeholder, &'t str), String> {
    let unclosed = || format!("{field} has a {{{{ without its }}}} (\\{{{{ stands for the braces)");
    let mut path = Vec::new();
    let mut rest = text.trim_start();
    while !rest.starts_with("}}") {
        let segment;
        (segment, rest) = if rest.starts_with('"') {
            let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let string = strings.next().and_then(Result::ok).ok_or_else(unclosed)?;
            (string, &rest[strings.byte_offset()..])
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            let end = end.min(rest.find("}}").ok_or_else(unclosed)?);
            (rest[..end].trim().to_owned(), &rest[end..])
        };
        path.push(segment);
        rest = rest.trim_start();
        if let Some(behind) = rest.strip_prefix('.') {
            rest = behind.trim_start();
        } else if !rest.starts_with("}}") {
            return Err(unclosed());
        }
    }
    let name = text[..text.len() - rest.len()].trim().to_owned();
    path.retain(|segment| !segment.is_empty());
    Ok((Placeholder { name, path }, &rest[2..]))
}

/// What the data has at a placeholder, as text.
fn value<'d>(root: &'d RawValue, placeholder: &Placeholder) -> Result<Cow<'d, str>, String> {
    // A name with dots in the data itself goes first.
    let whole = child(root, &placeholder.name).filter(|_| placeholder.path.len() > 1);
    let below = || placeholder.path.iter().try_fold(root, |value, segment| child(value, segment));
    let found = whole.or_else(below);
    let found = found.ok_or_else(|| {
        format!("the job's data has no {:?}, which the template names", placeholder.name)
    })?;
    if !found.get().starts_with('"') {
        return Ok(Cow::Borrowed(found.get()));
    }
    let text: Result<String, _> = serde_json::from_str(found.get());
    let text = text.map_err(|error| {
        format!("{:?} of the job's data is a text that cannot be read: {error}", placeholder.name)
    })?;
    Ok(Cow::Owned(text))
}

/// A member of an object, or an item of an array.
pub(crate) fn child<'d>(value: &'d RawValue, name: &str) -> Option<&'d RawValue> {
    if value.get().starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
        return items.get(name.parse::<usize>().ok()?).copied();
    }
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(value.get()).ok()?;
    members.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str, data: &str) -> Result<String, String> {
        let data: Json = serde_json::from_str(data).expect("it is JSON");
        Template::parse("options.prompt", template)?.fill(&data, 1_000)
    }

    #[test]
    fn a_template_shows_data_as_it_was_written() {
        let data = r#"{"text":"hello \"you\"","page":{"no":3,"a.b":[1.10,{"z":1,"alpha":12345678901234567890123}]},"list":["a"],"x.y":1,"none":null}"#;
        for (template, expected) in [
            ("{{text}}, page {{ page.no }} {{list.0}}", "hello \"you\", page 3 a"),
            (
                r#"{{page."a.b".0}} {{page."a.b".1}}"#,
                r#"1.10 {"z":1,"alpha":12345678901234567890123}"#,
            ),
            ("{{x.y}} {{none}}", "1 null"),
            (r"\{{text}} {{text}}", "{{text}} hello \"you\""),
            ("no placeholder } }} {", "no placeholder } }} {"),
            ("{{}}", data),
            ("{{ }}", data),
        ] {
            assert_eq!(fill(template, data).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_cannot_be_filled_is_named() {
        for (template, data, names) in [
            ("{{nothing}}", "{}", "nothing"),
            ("{{text.more}}", r#"{"text":"x"}"#, "text.more"),
            ("{{text", "{}", "options.prompt"),
            (r#"{{"text}}"#, "{}", "options.prompt"),
            ("{{text}}", r#"{"text":"\ud83e"}"#, "cannot be read"),
            ("{{t}}{{t}}{{t}}{{t}}{{t}}", &format!(r#"{{"t":"{}"}}"#, "x".repeat(300)), "1000"),
        ] {
            let error = fill(template, data).expect_err("it cannot be filled");
            assert!(error.contains(names), "{template}: {error}");
        }
        let as_written = r#"{"text":"\ud83e"}"#;
        assert_eq!(fill("{{}}", as_written).as_deref(), Ok(as_written));
        let many = "{{t}}".repeat(PLACES_MAX + 1);
        assert!(Template::parse("options.prompt", &many).is_err());
    }

    #[test]
    fn deep_data_is_no_hindrance() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(400), "}".repeat(400));
        assert_eq!(
            fill(&format!("{{{{{}}}}}", vec!["a"; 400].join(".")), &deep).as_deref(),
            Ok("1")
        );
    }
}
