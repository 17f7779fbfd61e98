//! SPDX license expressions (SPDX 2.3, annex D), and the slash that older packages use for OR.

use std::iter::Peekable;
use std::str::SplitWhitespace;

use anyhow::{Context, bail, ensure};

/// Maximum nesting depth of parentheses.
const DEPTH_MAX: usize = 16;

/// A parsed license expression.
#[derive(Debug, PartialEq)]
pub enum Expression {
    /// An identifier, with its exception if any: `Apache-2.0 WITH LLVM-exception`.
    License(String),
    /// All of these apply.
    And(Vec<Expression>),
    /// The user may choose one of these.
    Or(Vec<Expression>),
}

impl Expression {
    pub fn parse(text: &str) -> anyhow::Result<Expression> {
        let text = text.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let mut words = text.split_whitespace().peekable();
        let expression = Expression::alternatives(&mut words, 0)?;
        ensure!(words.next().is_none(), "unexpected word at the end");
        Ok(expression)
    }

    /// Whether a user who accepts the licenses in `allowed` may use the licensed work.
    pub fn holds(&self, allowed: &[String]) -> bool {
        match self {
            Expression::License(license) => allowed.contains(license),
            Expression::And(all) => all.iter().all(|each| each.holds(allowed)),
            Expression::Or(any) => any.iter().any(|each| each.holds(allowed)),
        }
    }

    fn alternatives(words: &mut Words<'_>, depth: usize) -> anyhow::Result<Expression> {
        let mut all = vec![Expression::conjunction(words, depth)?];
        while words.next_if_eq(&"OR").is_some() {
            all.push(Expression::conjunction(words, depth)?);
        }
        Ok(combine(all, Expression::Or))
    }

    fn conjunction(words: &mut Words<'_>, depth: usize) -> anyhow::Result<Expression> {
        let mut all = vec![Expression::single(words, depth)?];
        while words.next_if_eq(&"AND").is_some() {
            all.push(Expression::single(words, depth)?);
        }
        Ok(combine(all, Expression::And))
    }

    fn single(words: &mut Words<'_>, depth: usize) -> anyhow::Result<Expression> {
        match words.next().context("end of the expression instead of a license")? {
            "(" => {
                ensure!(depth < DEPTH_MAX, "parentheses nested more than {DEPTH_MAX} deep");
                let inner = Expression::alternatives(words, depth + 1)?;
                ensure!(words.next() == Some(")"), "unclosed parenthesis");
                Ok(inner)
            }
            word @ (")" | "AND" | "OR" | "WITH") => bail!("{word} instead of a license"),
            license => {
                let mut license = license.to_owned();
                if words.next_if_eq(&"WITH").is_some() {
                    license += " WITH ";
                    license += words.next().context("no exception after WITH")?;
                }
                Ok(Expression::License(license))
            }
        }
    }
}

type Words<'a> = Peekable<SplitWhitespace<'a>>;

/// Returns the only element of `all`, or a combination of all elements.
fn combine(mut all: Vec<Expression>, combination: fn(Vec<Expression>) -> Expression) -> Expression {
    match all.pop() {
        Some(only) if all.is_empty() => only,
        last => {
            all.extend(last);
            combination(all)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(expression: &str, allowed: &[&str]) -> bool {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        Expression::parse(expression).unwrap().holds(&allowed)
    }

    #[test]
    fn an_expression_holds_as_spdx_defines() {
        for (expression, allowed, expected) in [
            ("MIT", &["MIT"][..], true),
            ("MIT", &["Apache-2.0"], false),
            ("MIT OR Apache-2.0", &["MIT"], true),
            ("MIT AND Apache-2.0", &["MIT"], false),
            ("MIT AND Apache-2.0", &["MIT", "Apache-2.0"], true),
            ("Apache-2.0 / MIT", &["MIT"], true),
            ("MIT/Apache-2.0", &["MIT"], true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT"], false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT", "Unicode-3.0"], true),
            // AND binds more tightly.
            ("MIT OR Apache-2.0 AND Unicode-3.0", &["MIT"], true),
            ("Apache-2.0 WITH LLVM-exception", &["Apache-2.0"], false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", &["MIT"], true),
        ] {
            assert_eq!(holds(expression, allowed), expected, "{expression} with {allowed:?}");
        }
    }

    #[test]
    fn invalid_expressions_are_refused() {
        let deep = format!("{}MIT{}", "(".repeat(99), ")".repeat(99));
        for text in ["", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "AND MIT", "MIT WITH", &deep] {
            assert!(Expression::parse(text).is_err(), "{text:?}");
        }
    }
}
