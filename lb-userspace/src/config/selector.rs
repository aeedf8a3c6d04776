//! Label selectors as kubectl writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use kube::core::{Expression, Selector, SelectorExt};
use serde::Deserialize;

/// Chooses MemberClusters by their labels; the default chooses all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct MemberSelector(Selector);

impl MemberSelector {
    /// Whether an object with these labels is chosen.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }
}

impl FromStr for MemberSelector {
    type Err = String;

    /// Reads `key=value`, `key==value`, `key!=value`, `key in (a,b)`, `key notin (a,b)`, `key` and `!key`,
    /// joined by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut selector = Selector::default();
        for requirement in requirements(text) {
            let expression = parse(requirement.trim()).ok_or_else(|| {
                format!(
                    "{:?} is not a requirement of a label selector; write key=value, key!=value, \
                     key in (a,b), key notin (a,b), key or !key",
                    requirement.trim()
                )
            })?;
            selector.extend(expression);
        }
        Ok(Self(selector))
    }
}

impl TryFrom<String> for MemberSelector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for MemberSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Splits at the commas that are in no parentheses. An empty text has no requirements.
fn requirements(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let mut depth = 0_u32;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn parse(text: &str) -> Option<Expression> {
    if let Some((key, value)) = text.split_once("!=") {
        return Some(Expression::NotEqual(label_key(key)?, label_value(value)?));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Some(Expression::Equal(label_key(key)?, label_value(value)?));
    }
    if let Some(key) = text.strip_prefix('!') {
        return label_key(key).map(Expression::DoesNotExist);
    }
    let Some((head, list)) = text.split_once('(') else {
        return label_key(text).map(Expression::Exists);
    };
    let values: Option<BTreeSet<String>> = list.strip_suffix(')')?.split(',').map(label_value).collect();
    let (key, operator) = head.trim().split_once(char::is_whitespace)?;
    match operator.trim() {
        "in" => Some(Expression::In(label_key(key)?, values?)),
        "notin" => Some(Expression::NotIn(label_key(key)?, values?)),
        _ => None,
    }
}

/// A label's key: perhaps a DNS prefix and `/`, then a name.
fn label_key(text: &str) -> Option<String> {
    let text = text.trim();
    let name = text.split_once('/').map_or(text, |(_, name)| name);
    (!name.is_empty() && name.len() <= 63 && text.chars().all(|c| is_plain(c) || c == '/'))
        .then(|| text.to_owned())
}

/// A label's value, which may be empty.
fn label_value(text: &str) -> Option<String> {
    let text = text.trim();
    (text.len() <= 63 && text.chars().all(is_plain)).then(|| text.to_owned())
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        selector.parse::<MemberSelector>().expect(selector).matches(&labels)
    }

    #[test]
    fn every_form_that_kubectl_knows_chooses_as_kubectl_does() {
        let labels = [("location", "cn-hangzhou"), ("kanmon.dev/tier", "gold")];
        for (selector, expected) in [
            ("", true),
            ("location=cn-hangzhou", true),
            ("location == cn-hangzhou", true),
            ("location=cn-shanghai", false),
            ("location!=cn-shanghai", true),
            ("absent!=x", true),
            ("location in (cn-hangzhou, cn-shanghai)", true),
            ("location in (cn-shanghai)", false),
            ("location notin (cn-shanghai)", true),
            ("kanmon.dev/tier", true),
            ("!kanmon.dev/tier", false),
            ("!absent", true),
            ("location in (cn-hangzhou,cn-shanghai),kanmon.dev/tier=gold", true),
            ("location in (cn-hangzhou,cn-shanghai),kanmon.dev/tier=silver", false),
        ] {
            assert_eq!(chosen(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused_with_the_forms_that_are() {
        for text in ["a b", "=x", "a in b", "a in (b", "a within (b)", "a=b=c", ",", "a,,b", "a=(b)", "a/=x"]
        {
            let message = text.parse::<MemberSelector>().expect_err(text);
            assert!(message.contains("key in (a,b)"), "{text}: {message}");
        }
    }
}
