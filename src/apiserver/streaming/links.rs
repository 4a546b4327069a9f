//! Links in what a proxied backend answers: those that lead to the backend itself are made to
//! lead through the proxy again, in HTML and in redirects. Pure.

/// Where the backend appears to its clients, and where it is.
#[derive(Clone, Debug)]
pub struct Links {
    /// The path of the proxied object: `/api/v1/namespaces/n/pods/p/proxy`.
    prefix: String,
    /// The backend's `host:port`.
    backend: String,
    /// The `Host` that the client asked.
    asked: String,
}

impl Links {
    pub fn new(prefix: &str, backend: &str, asked: &str) -> Self {
        Self {
            prefix: prefix.trim_end_matches('/').to_owned(),
            backend: backend.to_owned(),
            asked: asked.to_owned(),
        }
    }

    /// The link as it must stand; `None` where it may stay.
    pub fn rewrite(&self, link: &str) -> Option<String> {
        let absolute = ["http://", "https://", "//"]
            .iter()
            .find_map(|scheme| link.strip_prefix(scheme));
        let path = match absolute {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, path) = rest.split_at(end);
                if host != self.backend && host != self.asked {
                    return None;
                }
                path
            }
            None => link,
        };
        // Relative links lead on from where the page is.
        if !path.starts_with('/') {
            return absolute.map(|_| format!("{}/{path}", self.prefix));
        }
        if path.starts_with(&self.prefix) {
            return absolute.map(|_| path.to_owned());
        }
        Some(format!("{}{path}", self.prefix))
    }
}

/// Attributes that hold a link, by tag.
const LINKS: [(&str, &[&str]); 29] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("video", &["poster", "src"]),
    ("svg", &[]),
    ("use", &["href"]),
    ("image", &["href"]),
];

/// What is inside these is text, whatever it looks like.
const RAW: [&str; 4] = ["script", "style", "textarea", "title"];
/// A tag longer than this is passed on as it is.
const MAX_TAG_BYTES: usize = 64 << 10;

/// Rewrites an HTML page as it comes, piece by piece; all but links stays byte for byte. Each byte is
/// looked at once, in whatever pieces it comes.
pub struct Page {
    links: Links,
    /// What came and cannot be judged yet: empty, or from a `<` on.
    held: Vec<u8>,
    /// How far `held` was looked at, and what was seen.
    seen: Seen,
    /// Inside an element of [`RAW`].
    raw: Option<&'static str>,
}

/// Where in a tag or comment the search for its end is.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    at: usize,
    quote: Option<u8>,
    /// An equals sign was the last that was no blank.
    value: bool,
}

impl Page {
    pub fn new(links: Links) -> Self {
        Self {
            links,
            held: Vec::new(),
            seen: Seen::default(),
            raw: None,
        }
    }

    /// What can be passed on after these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::new();
        let mut from = 0;
        while let Some(open) = held[from..].iter().position(|byte| *byte == b'<') {
            out.extend_from_slice(&held[from..from + open]);
            from += open;
            let rest = &held[from..];
            let Some(length) = self.tag_length(rest) else {
                if rest.len() > MAX_TAG_BYTES {
                    self.seen = Seen::default();
                    out.extend_from_slice(rest);
                } else if from == 0 {
                    self.held = held;
                } else {
                    self.held = rest.to_vec();
                }
                return out;
            };
            self.seen = Seen::default();
            self.tag(&rest[..length], &mut out);
            from += length;
        }
        out.extend_from_slice(&held[from..]);
        out
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// How long the tag or comment is that begins here; `None` if its end has not come yet. What
    /// is no tag is one byte long.
    fn tag_length(&mut self, text: &[u8]) -> Option<usize> {
        if let Some(raw) = self.raw {
            let end = raw.len() + 2;
            let head = text.get(..end.min(text.len())).unwrap_or(text);
            let close = format!("</{raw}");
            if !close.as_bytes()[..head.len()].eq_ignore_ascii_case(head) {
                return Some(1);
            }
            if head.len() < end {
                return None;
            }
        }
        if text.starts_with(b"<!--") {
            let from = self.seen.at.max(4);
            let end = text
                .get(from..)?
                .windows(3)
                .position(|three| three == b"-->");
            // Two bytes of its end may have come.
            self.seen.at = text.len().saturating_sub(2);
            return end.map(|end| from + end + 3);
        }
        match text.get(1) {
            None => return None,
            // It may become a comment.
            Some(b'!') if b"<!--".starts_with(text) => return None,
            Some(b'/' | b'!' | b'?') => {}
            Some(byte) if byte.is_ascii_alphabetic() => {}
            Some(_) => return Some(1),
        }
        let Seen {
            at,
            mut quote,
            mut value,
        } = self.seen;
        for (index, byte) in text.iter().enumerate().skip(at.max(1)) {
            match (quote, byte) {
                (Some(open), byte) if open == *byte => quote = None,
                (Some(_), _) => {}
                (None, b'>') => return Some(index + 1),
                (None, b'"' | b'\'') if value => {
                    quote = Some(*byte);
                    value = false;
                }
                (None, b'=') => value = true,
                (None, byte) if byte.is_ascii_whitespace() => {}
                (None, _) => value = false,
            }
        }
        self.seen = Seen {
            at: text.len(),
            quote,
            value,
        };
        None
    }

    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let text = match std::str::from_utf8(tag) {
            Ok(text) if tag.len() > 1 => text,
            _ => return out.extend_from_slice(tag),
        };
        let closing = text.starts_with("</");
        let name_end = text[1..]
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '/'))
            .map_or(text.len(), |end| end + 1);
        let name = text[1..name_end].trim_matches('/').to_ascii_lowercase();
        if closing {
            if self.raw.is_some_and(|raw| raw == name) {
                self.raw = None;
            }
            return out.extend_from_slice(tag);
        }
        self.raw = RAW.into_iter().find(|raw| *raw == name);
        match LINKS.iter().find(|(tag, _)| *tag == name) {
            Some((_, attributes)) => {
                out.extend_from_slice(&text.as_bytes()[..name_end]);
                self.attributes(&text[name_end..], attributes, out);
            }
            None => out.extend_from_slice(tag),
        }
    }

    fn attributes(&self, mut rest: &str, wanted: &[&str], out: &mut Vec<u8>) {
        while let Some(equals) = rest.find('=') {
            let (before, value) = rest.split_at(equals + 1);
            let name = before[..equals].trim_end();
            let name = name
                .rsplit(|c: char| c.is_ascii_whitespace() || c == '/' || c == '"' || c == '\'')
                .next()
                .unwrap_or_default();
            let wanted = wanted.iter().any(|one| one.eq_ignore_ascii_case(name));
            let spaces = value.len() - value.trim_start().len();
            out.extend_from_slice(before.as_bytes());
            out.extend_from_slice(&value.as_bytes()[..spaces]);
            let value = &value[spaces..];
            let (open, inner) = match value.chars().next() {
                Some(quote @ ('"' | '\'')) => (Some(quote), &value[1..]),
                _ => (None, value),
            };
            let end = match open {
                Some(quote) => inner.find(quote),
                None => inner.find(|c: char| c.is_ascii_whitespace() || c == '>'),
            };
            let end = end.unwrap_or(inner.len());
            let link = &inner[..end];
            let quote = open.map(String::from).unwrap_or_default();
            let new = wanted.then(|| self.links.rewrite(link)).flatten();
            out.extend_from_slice(quote.as_bytes());
            out.extend_from_slice(new.as_deref().unwrap_or(link).as_bytes());
            rest = &inner[end..];
            if let Some(quote) = open
                && let Some(after) = rest.strip_prefix(quote)
            {
                out.extend_from_slice(quote.to_string().as_bytes());
                rest = after;
            }
        }
        out.extend_from_slice(rest.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        Links::new(
            "/api/v1/namespaces/n/pods/p/proxy/",
            "10.0.0.7:80",
            "api:6443",
        )
    }

    #[test]
    fn which_links_change() {
        for (link, want) in [
            (
                "/x?y=1#z",
                Some("/api/v1/namespaces/n/pods/p/proxy/x?y=1#z"),
            ),
            ("/", Some("/api/v1/namespaces/n/pods/p/proxy/")),
            (
                "http://10.0.0.7:80/x",
                Some("/api/v1/namespaces/n/pods/p/proxy/x"),
            ),
            (
                "https://api:6443/x",
                Some("/api/v1/namespaces/n/pods/p/proxy/x"),
            ),
            // Elsewhere, or relative to the page, or already through the proxy.
            ("http://example.com/x", None),
            ("x/y", None),
            ("#top", None),
            ("mailto:a@b", None),
            ("/api/v1/namespaces/n/pods/p/proxy/x", None),
        ] {
            assert_eq!(links().rewrite(link).as_deref(), want, "{link}");
        }
    }

    #[test]
    fn a_page_in_pieces() {
        let page = "<!DOCTYPE html><A class=\"a\" HREF='/x'>1 < 2</A><!-- <a href=\"/c\"> -->\
            <script src=/s>let a = '<a href=\"/j\">';</script><p title=\"/t\"><img alt='a>b' src = \"/i\"/></p><a href=\"/en";
        let p = "/api/v1/namespaces/n/pods/p/proxy";
        let want = page
            .replace("'/x'", &format!("'{p}/x'"))
            .replace("src=/s", &format!("src={p}/s"))
            .replace("\"/i\"", &format!("\"{p}/i\""));
        for size in [1, 3, 7, 1000] {
            let mut rewriting = Page::new(links());
            let mut out = Vec::new();
            for piece in page.as_bytes().chunks(size) {
                out.extend(rewriting.push(piece));
            }
            out.extend(rewriting.finish());
            assert_eq!(String::from_utf8_lossy(&out), want, "in pieces of {size}");
        }
    }

    #[test]
    fn a_tag_without_end_costs_no_more_than_its_bytes() {
        let begun = std::time::Instant::now();
        for start in ["<a href='", "<!--", "<a ", "<script><a href="] {
            let mut page = Page::new(links());
            let mut out = page.push(start.as_bytes()).len();
            // Byte by byte: looked at anew each time it would be 10^12 steps.
            for _ in 0..1 << 20 {
                out += page.push(b"x").len();
            }
            out += page.finish().len();
            assert_eq!(out, (1 << 20) + start.len(), "{start}");
            assert!(page.held.capacity() <= 4 * MAX_TAG_BYTES);
        }
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(20), "{took:?}");
    }
}
