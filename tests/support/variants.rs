//! Enums as their source has them, so that no variant is forgotten.

#![allow(dead_code)]

use std::collections::BTreeSet;

/// The variants of an enum, from the source's text: what stands at one level of indentation inside its braces.
pub fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let start = source.find(&format!("pub enum {name} {{")).unwrap_or_else(|| panic!("no enum {name}"));
    let body = &source[start..];
    let body = &body[..body.find("\n}").unwrap()];
    let upper =
        |line: &&str| line.strip_prefix("    ").is_some_and(|l| l.starts_with(|c: char| c.is_ascii_uppercase()));
    let found: BTreeSet<String> = body.lines().filter(upper).map(first_word).collect();
    assert!(found.len() > 1, "{name} was not read");
    found
}

/// The name of a variant, as `Debug` prints it first.
pub fn first_word(text: &str) -> String {
    text.trim().chars().take_while(char::is_ascii_alphanumeric).collect()
}
