//! Which operating system and architecture an image must be for. Pure.

/// The architecture as images name it.
const fn architecture() -> &'static str {
    match std::env::consts::ARCH.as_bytes() {
        b"x86_64" => "amd64",
        b"aarch64" => "arm64",
        b"riscv64" => "riscv64",
        _ => std::env::consts::ARCH,
    }
}

/// `linux/amd64`.
pub fn ours() -> String {
    format!("linux/{}", architecture())
}

pub fn is_ours(os: &str, arch: &str) -> bool {
    os == "linux" && arch == architecture()
}

/// Whether the variant is what every processor of the architecture runs.
pub fn is_plain(variant: &str) -> bool {
    match architecture() {
        "amd64" => matches!(variant, "" | "v1"),
        "arm64" => matches!(variant, "" | "v8"),
        _ => variant.is_empty(),
    }
}

/// `linux/arm64, linux/s390x` without attestation entries (`unknown/unknown`).
pub fn list<'a>(offers: impl Iterator<Item = &'a (String, String)>) -> String {
    let offers: Vec<String> = offers
        .filter(|(os, _)| os != "unknown")
        .map(|(os, architecture)| format!("{os}/{architecture}"))
        .collect();
    if offers.is_empty() {
        "none".to_owned()
    } else {
        offers.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestations_are_not_offers() {
        let offers = [
            ("linux".to_owned(), "s390x".to_owned()),
            ("unknown".to_owned(), "unknown".to_owned()),
        ];
        assert_eq!(list(offers.iter()), "linux/s390x");
        assert_eq!(list([].iter()), "none");
        assert!(is_ours("linux", architecture()));
        assert!(!is_ours("windows", architecture()));
    }
}
