//! Figures of two sides, taken in turns.
#![allow(dead_code, reason = "each bench uses its own part")]

/// What comes first is thrown away: caches, and what grows at first.
const FIRST: usize = 3;
/// How often the ratios are drawn anew to see how far their median moves.
const DRAWS: usize = 2000;

/// `pairs` figures of either side; who is first changes with every pair.
pub fn take(pairs: usize, mut ask: impl FnMut(usize) -> f64) -> [Vec<f64>; 2] {
    let mut figures: [Vec<f64>; 2] = Default::default();
    for pair in 0..pairs + FIRST {
        for side in [pair % 2, 1 - pair % 2] {
            figures[side].push(ask(side));
        }
    }
    figures.map(settled)
}

/// Without the first.
pub fn settled(mut figures: Vec<f64>) -> Vec<f64> {
    figures.split_off(FIRST)
}

pub fn print(name: &str, figures: &[Vec<f64>; 2]) {
    println!("{}", line(name, figures));
}

/// The same, with what it should be.
pub fn print_wanted(name: &str, figures: &[Vec<f64>; 2], wanted: &str) {
    println!("{} ({wanted})", line(name, figures));
}

fn line(name: &str, [before, now]: &[Vec<f64>; 2]) -> String {
    let ratios: Vec<f64> = before
        .iter()
        .zip(now)
        .map(|(before, now)| now / before)
        .collect();
    let (least, most) = range(&ratios);
    let percent = |ratio: f64| (ratio - 1.0) * 100.0;
    format!(
        "{name:<44} {:>9.3} {:>9.3}  {:+.1} % ({:+.1} to {:+.1})  n={}",
        median(before.clone()),
        median(now.clone()),
        percent(median(ratios.clone())),
        percent(least),
        percent(most),
        ratios.len(),
    )
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Between which the median of such figures lies with 95 % certainty (bootstrap).
fn range(figures: &[f64]) -> (f64, f64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        // xorshift: good enough to choose with, and the same in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        figures[(state % figures.len() as u64) as usize]
    };
    let medians = (0..DRAWS).map(|_| median((0..figures.len()).map(|_| draw()).collect()));
    let mut medians: Vec<f64> = medians.collect();
    medians.sort_by(f64::total_cmp);
    (medians[DRAWS / 40], medians[DRAWS - 1 - DRAWS / 40])
}
