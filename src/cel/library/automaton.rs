//! Matching with a known bound: a deterministic automaton that is built while it runs, and where it
//! would grow without end, a slow one whose work is counted before it starts.
//!
//! The `regex` crate decides this by itself and says nothing about it; a pattern of ten characters
//! may then take milliseconds for a text of a thousand.

use std::{error::Error, fmt, ops::Range, sync::OnceLock};

use regex_automata::{
    Anchored, Input,
    hybrid::dfa::{Cache, Config, DFA},
    nfa::thompson::{self, NFA, WhichCaptures, pikevm::PikeVM},
    util::{pool::Pool, syntax},
};

use crate::cel::{program::Meter, value::EvalError};

/// Largest program of a pattern, in bytes. Go allows repetitions up to 1000, each copied.
const MAX_PROGRAM: usize = 1 << 20;
/// Most that a pattern's deterministic automata take, in bytes each.
const MAX_CACHE: usize = 1 << 20;

type Caches = Pool<(Cache, Option<Cache>), Box<dyn Fn() -> (Cache, Option<Cache>) + Send + Sync>>;

/// A compiled pattern.
pub(crate) struct Automaton {
    pattern: String,
    forward: DFA,
    /// Finds where a match begins. Made when first asked for.
    reverse: OnceLock<Option<DFA>>,
    /// What to use when the others give up.
    slow: OnceLock<Option<PikeVM>>,
    caches: Caches,
}

impl fmt::Debug for Automaton {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Automaton({:?})", self.pattern)
    }
}

impl Automaton {
    /// Compiles a pattern in the syntax of the `regex` crate. The error is its last line.
    pub fn new(pattern: String) -> Result<Self, String> {
        let nfa = nfa(&pattern, false)?;
        let forward = deterministic(nfa).map_err(|error| deepest(&error))?;
        let for_cache = forward.clone();
        Ok(Self {
            pattern,
            forward,
            reverse: OnceLock::new(),
            slow: OnceLock::new(),
            caches: Pool::new(Box::new(move || (for_cache.create_cache(), None))),
        })
    }

    /// How large the compiled pattern is: the work of compiling it, and of a step in the worst case.
    pub fn states(&self) -> u64 {
        self.forward.get_nfa().states().len() as u64
    }

    pub fn is_match(&self, meter: &mut Meter<'_>, text: &str) -> Result<bool, EvalError> {
        let input = Input::new(text).earliest(true);
        let mut caches = self.caches.get();
        let before = size(&caches.0);
        let found = self.forward.try_search_fwd(&mut caches.0, &input);
        count(meter, &input, size(&caches.0) - before)?;
        if let Ok(found) = found {
            return Ok(found.is_some());
        }
        self.slowly(meter, input).map(|found| found.is_some())
    }

    /// The first match that begins at `from` or later.
    pub fn find(
        &self,
        meter: &mut Meter<'_>,
        text: &str,
        from: usize,
    ) -> Result<Option<Range<usize>>, EvalError> {
        let input = Input::new(text).range(from..);
        let mut caches = self.caches.get();
        let before = size(&caches.0);
        let end = self.forward.try_search_fwd(&mut caches.0, &input);
        count(meter, &input, size(&caches.0) - before)?;
        let end = match end {
            Ok(Some(end)) => end.offset(),
            Ok(None) => return Ok(None),
            Err(_) => return self.slowly(meter, input),
        };
        let Some(reverse) = self.reverse() else {
            return self.slowly(meter, input);
        };
        let cache = caches.1.get_or_insert_with(|| reverse.create_cache());
        let before = size(cache);
        let back = Input::new(text).range(from..end).anchored(Anchored::Yes);
        let start = reverse.try_search_rev(cache, &back);
        count(meter, &back, size(cache) - before)?;
        match start {
            Ok(Some(start)) => Ok(Some(start.offset()..end)),
            Ok(None) | Err(_) => self.slowly(meter, input),
        }
    }

    fn reverse(&self) -> Option<&DFA> {
        let make = || deterministic(nfa(&self.pattern, true).ok()?).ok();
        self.reverse.get_or_init(make).as_ref()
    }

    /// Steps through all states at every character, which is paid before.
    fn slowly(
        &self,
        meter: &mut Meter<'_>,
        input: Input<'_>,
    ) -> Result<Option<Range<usize>>, EvalError> {
        let length = input.get_span().len() as u64;
        meter.work(length.saturating_mul(self.states()) / 2)?;
        let make = || PikeVM::new_from_nfa(self.forward.get_nfa().clone()).ok();
        let Some(slow) = self.slow.get_or_init(make) else {
            return Err(EvalError::new("pattern cannot be matched"));
        };
        let found = slow.find(&mut slow.create_cache(), input);
        Ok(found.map(|found| found.range()))
    }
}

/// Notes the work of a search, by its length and by what was added to the automaton.
fn count(meter: &mut Meter<'_>, input: &Input<'_>, grown: usize) -> Result<(), EvalError> {
    meter.work(input.get_span().len() as u64 / 16 + grown as u64 / 4)
}

/// All that was ever put into a cache, in bytes: never less than before.
fn size(cache: &Cache) -> usize {
    cache.clear_count().saturating_mul(MAX_CACHE) + cache.memory_usage()
}

fn nfa(pattern: &str, reverse: bool) -> Result<NFA, String> {
    let captures = if reverse {
        WhichCaptures::None
    } else {
        WhichCaptures::Implicit
    };
    let config = thompson::Config::new()
        .reverse(reverse)
        .which_captures(captures)
        .nfa_size_limit(Some(MAX_PROGRAM));
    thompson::Compiler::new()
        .configure(config)
        .syntax(syntax::Config::new().nest_limit(200))
        .build(pattern)
        .map_err(|error| deepest(&error))
}

fn deterministic(nfa: NFA) -> Result<DFA, regex_automata::hybrid::BuildError> {
    // A new state takes a step for each of the program's: it has to be used as often.
    let steps = nfa.states().len().max(10);
    let config = Config::new()
        .cache_capacity(MAX_CACHE)
        .skip_cache_capacity_check(true)
        .minimum_cache_clear_count(Some(1))
        .minimum_bytes_per_state(Some(steps));
    DFA::builder().configure(config).build_from_nfa(nfa)
}

/// The last cause's last line.
fn deepest(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    let text = cause.to_string();
    text.lines().last().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cel::program::{Budget, Patterns};

    #[test]
    fn finds_what_the_regex_crate_finds() {
        let texts = ["", "abc", "aXbXc", "foo bar  baz", "éaé", "aaaaaaaaab"];
        for pattern in [
            "a*",
            "[a-z]+",
            "X|$",
            "^a",
            r"(?-u:\b)",
            "é?",
            "a+?",
            "(a|ab)(c|bcd)?",
        ] {
            let ours = Automaton::new(pattern.to_owned()).unwrap();
            let theirs = regex::Regex::new(pattern).unwrap();
            let patterns = Patterns::new();
            let mut meter = Meter::new(Budget::for_rules(), &patterns);
            for text in texts {
                let found = ours.find(&mut meter, text, 0).unwrap();
                let wanted = theirs.find(text).map(|found| found.range());
                assert_eq!(found, wanted, "{pattern} {text}");
                let matches = ours.is_match(&mut meter, text).unwrap();
                assert_eq!(matches, wanted.is_some(), "{pattern} {text}");
            }
        }
    }
}
