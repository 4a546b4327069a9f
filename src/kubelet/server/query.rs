//! A request's query, taken apart.

use http::Uri;

use super::answer::Answer;

pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(uri: &Uri) -> Self {
        Self::from_text(uri.query().unwrap_or_default())
    }

    pub fn from_text(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes());
        Self(pairs.into_owned().collect())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(known, _)| known == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The first value, unless it is empty.
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).find(|value| !value.is_empty())
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(
            self.get(name),
            Some("1" | "t" | "T" | "true" | "True" | "TRUE")
        )
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Answer> {
        let parse = |value: &str| {
            let bad = || Answer::bad_request(format!("{name}: {value:?} is not a number"));
            value.parse().map_err(|_| bad())
        };
        self.get(name).map(parse).transpose()
    }
}
