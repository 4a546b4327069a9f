//! Which signal asks a container to stop. Pure.

use k8s_openapi::api::core::v1::Container;
use nix::sys::signal::Signal;

use crate::runtime::image::Image;

/// The kernel's first real-time signal that C libraries do not keep for themselves, and the last.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The pod's, else the image's, else SIGTERM.
pub fn stop_signal(container: &Container, image: &Image) -> i32 {
    let of_pod = || container.lifecycle.as_ref()?.stop_signal.clone();
    let of_image = || image.config.config().as_ref()?.stop_signal().clone();
    let parsed = |name: String| parse(&name);
    of_pod()
        .and_then(parsed)
        .or_else(|| of_image().and_then(parsed))
        .unwrap_or(Signal::SIGTERM as i32)
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `SIGRTMAX-1`.
fn parse(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=*REAL_TIME.end()).contains(&number).then_some(number);
    }
    let name = name.to_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |text: &str| match text.get(1..) {
        None => Some(0),
        Some(number) => number.parse::<i32>().ok(),
    };
    let real_time = match (short.strip_prefix("RTMIN"), short.strip_prefix("RTMAX")) {
        (Some(rest), _) if rest.is_empty() || rest.starts_with('+') => {
            Some(REAL_TIME.start() + offset(rest)?)
        }
        (_, Some(rest)) if rest.is_empty() || rest.starts_with('-') => {
            Some(REAL_TIME.end() - offset(rest)?)
        }
        _ => None,
    };
    if let Some(number) = real_time {
        return REAL_TIME.contains(&number).then_some(number);
    }
    format!("SIG{short}")
        .parse::<Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (name, want) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+31", None),
            ("SIGNOTHING", None),
            ("0", None),
        ] {
            assert_eq!(parse(name), want, "{name}");
        }
    }
}
