//! Prometheus' text format: families with their help and type, samples with escaped labels.
//!
//! Called by whoever serves `/metrics`. Pure, but for `process.rs`, which reads what this process uses.
//! Always true: a family has its help and type before its samples, and one without samples is left out.

pub mod process;

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

/// As clients ask for the format by name.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// What a sample is told apart by, as it stands between the braces.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(String);

impl Labels {
    /// A family with a single sample.
    pub fn none() -> Self {
        Self::default()
    }

    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (name, value) in pairs {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(name);
            text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        Self(text)
    }

    fn in_braces(&self) -> String {
        match self.0.as_str() {
            "" => String::new(),
            text => format!("{{{text}}}"),
        }
    }

    fn up_to(&self, bound: &str) -> String {
        let comma = if self.0.is_empty() { "" } else { "," };
        format!("{{{}{comma}le=\"{bound}\"}}", self.0)
    }
}

/// Observations by size; `N` bounds are the caller's, and the same each time.
#[derive(Clone, Debug)]
pub struct Histogram<const N: usize> {
    /// How many were at most as large as each bound.
    buckets: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            buckets: [0; N],
            count: 0,
            sum: 0.0,
        }
    }
}

impl<const N: usize> Histogram<N> {
    pub fn observe(&mut self, bounds: &[f64; N], took: Duration) {
        let seconds = took.as_secs_f64();
        self.count += 1;
        self.sum += seconds;
        for (bound, count) in bounds.iter().zip(&mut self.buckets) {
            *count += u64::from(seconds <= *bound);
        }
    }
}

/// Lines as they grow: one family after the other.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    /// Behind each sample, where all are of one moment.
    at: Option<u128>,
}

impl Page {
    pub fn new() -> Self {
        Self::default()
    }

    /// Of figures that were read at that time.
    pub fn at(at: SystemTime) -> Self {
        Self {
            text: String::new(),
            at: Some(since_epoch(at).as_millis()),
        }
    }

    pub fn into_text(self) -> String {
        self.text
    }

    /// One family; it is left out when there is no sample of it.
    pub fn family(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(name, kind, help);
        for (labels, value) in samples {
            self.sample(name, &labels.in_braces(), value);
        }
    }

    /// A family with one sample that has no labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help, [(Labels::none(), value)]);
    }

    pub fn histograms<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        bounds: &[f64; N],
        samples: impl IntoIterator<Item = (Labels, Histogram<N>)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (labels, histogram) in samples {
            for (bound, count) in bounds.iter().zip(histogram.buckets) {
                self.sample(&bucket, &labels.up_to(&bound.to_string()), count as f64);
            }
            let braces = labels.in_braces();
            self.sample(&bucket, &labels.up_to("+Inf"), histogram.count as f64);
            self.sample(&format!("{name}_sum"), &braces, histogram.sum);
            self.sample(&format!("{name}_count"), &braces, histogram.count as f64);
        }
    }

    // Writing into a string cannot fail.

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match self.at {
            Some(at) => writeln!(self.text, "{name}{labels} {value} {at}"),
            None => writeln!(self.text, "{name}{labels} {value}"),
        };
    }
}

pub fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_as_text() {
        let mut page = Page::new();
        page.family("none", Kind::Gauge, "No sample.", []);
        page.single("one", Kind::Counter, "A \\ and\na line.", 1.5);
        let odd = Labels::of(&[("a", "x\\y\"z\n"), ("b", "")]);
        page.family("two", Kind::Gauge, "Odd.", [(odd, 3e15)]);
        let want = "# HELP one A \\\\ and\\na line.\n# TYPE one counter\none 1.5\n\
                    # HELP two Odd.\n# TYPE two gauge\n\
                    two{a=\"x\\\\y\\\"z\\n\",b=\"\"} 3000000000000000\n";
        assert_eq!(page.into_text(), want);
    }

    #[test]
    fn figures_of_one_moment_say_when() {
        let mut page = Page::at(SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
        page.single("one", Kind::Gauge, "h", 2.0);
        assert!(page.into_text().ends_with("\none 2 1500\n"));
    }

    #[test]
    fn buckets_are_cumulative() {
        let bounds = [0.5, 1.0];
        let mut histogram = Histogram::default();
        for millis in [500, 750, 4000] {
            histogram.observe(&bounds, Duration::from_millis(millis));
        }
        let mut page = Page::new();
        let labels = Labels::of(&[("a", "b")]);
        let samples = [(Labels::none(), histogram.clone()), (labels, histogram)];
        page.histograms("h", "Help.", &bounds, samples);
        let want = "# HELP h Help.\n# TYPE h histogram\n\
                    h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 3\n\
                    h_sum 5.25\nh_count 3\n\
                    h_bucket{a=\"b\",le=\"0.5\"} 1\nh_bucket{a=\"b\",le=\"1\"} 2\n\
                    h_bucket{a=\"b\",le=\"+Inf\"} 3\nh_sum{a=\"b\"} 5.25\nh_count{a=\"b\"} 3\n";
        assert_eq!(page.into_text(), want);
    }
}
