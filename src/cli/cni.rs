//! `--cni-conf-dir` and `--cni-bin-dir`: the pods' network by plugins that the user brings.

use std::path::PathBuf;

use serde::Deserialize;

use super::Error;
use crate::kubelet::network::cni::Folders;

/// Where installers put plugins, if nothing else is said.
const PROGRAMS: &str = "/opt/cni/bin";

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "The pods' network")]
pub struct CniArgs {
    /// Leave the pods' network to CNI plugins: the first *.conflist, *.conf or *.json in this folder says to which
    #[arg(long, value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Where the plugins are; may be repeated [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    cni_bin_dir: Vec<PathBuf>,
}

/// The same in the node's file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Written {
    conf_dir: PathBuf,
    #[serde(default)]
    bin_dirs: Vec<PathBuf>,
}

impl CniArgs {
    /// What was typed and what the file says; what was typed counts more. `None`: the network is our own.
    pub fn folders(&self, written: Option<&Written>) -> Result<Option<Folders>, Error> {
        let configurations = self.cni_conf_dir.as_ref();
        let configurations = configurations.or(written.map(|written| &written.conf_dir));
        let Some(configurations) = configurations else {
            return match self.cni_bin_dir.is_empty() {
                true => Ok(None),
                false => Err("--cni-bin-dir says where CNI plugins are: --cni-conf-dir must say which of them make \
                              the network"
                    .into()),
            };
        };
        let written = written.map(|written| written.bin_dirs.as_slice());
        let programs = match (self.cni_bin_dir.as_slice(), written.unwrap_or_default()) {
            ([], []) => &[PathBuf::from(PROGRAMS)][..],
            ([], written) => written,
            (typed, _) => typed,
        };
        let absolute = |path: &PathBuf| match path.to_str().is_some_and(|path| path.contains(':')) {
            false => Ok(std::path::absolute(path)?),
            // They are told to plugins with colons between them.
            true => Err(format!("--cni-bin-dir {}: it must have no colon", path.display()).into()),
        };
        Ok(Some(Folders {
            configurations: std::path::absolute(configurations)?,
            programs: programs
                .iter()
                .map(absolute)
                .collect::<Result<_, Error>>()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_counts_more_than_what_is_written() {
        let written = |text: &str| serde_json::from_str::<Written>(text).unwrap();
        let both = written(r#"{"confDir": "/w", "binDirs": ["/x", "/y"]}"#);
        for (conf, bin, written, want) in [
            (None, &[][..], None, Ok(None)),
            (Some("/c"), &[], None, Ok(Some(("/c", &[PROGRAMS][..])))),
            (
                Some("/c"),
                &["/a", "/b"],
                Some(&both),
                Ok(Some(("/c", &["/a", "/b"]))),
            ),
            (None, &[], Some(&both), Ok(Some(("/w", &["/x", "/y"])))),
            (None, &["/a"], Some(&both), Ok(Some(("/w", &["/a"])))),
            (None, &["/a"], None, Err("--cni-conf-dir must say")),
            (Some("/c"), &["/a:b"], None, Err("no colon")),
        ] {
            let args = CniArgs {
                cni_conf_dir: conf.map(PathBuf::from),
                cni_bin_dir: bin.iter().map(PathBuf::from).collect(),
            };
            match (args.folders(written), want) {
                (Ok(None), Ok(None)) => {}
                (Ok(Some(got)), Ok(Some((conf, bin)))) => {
                    assert_eq!(got.configurations, PathBuf::from(conf));
                    let bin: Vec<PathBuf> = bin.iter().map(PathBuf::from).collect();
                    assert_eq!(got.programs, bin);
                }
                (Err(why), Err(want)) => assert!(why.to_string().contains(want), "{why}"),
                (got, want) => panic!("{got:?} {want:?}"),
            }
        }
        assert!(serde_json::from_str::<Written>(r#"{"binDirs": []}"#).is_err());
        assert!(serde_json::from_str::<Written>(r#"{"confDir": "/c", "x": 1}"#).is_err());
    }
}
