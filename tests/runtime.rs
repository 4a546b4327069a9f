//! The container runtime against the real kernel: every test has pods, folders and control groups
//! of its own. Needs root and a static busybox at `/bin/busybox`.

#[path = "runtime/lab.rs"]
mod lab;

use std::time::{Duration, Instant};

use lab::{Lab, SECOND, TestResult};
use oci_spec::runtime::{LinuxPidsBuilder, LinuxResourcesBuilder};
use vetch::runtime::{Error, Phase};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn exit_codes_output_and_start_errors() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    for (script, code) in [("true", 0), ("false", 1), ("exit 7", 7)] {
        let id = lab.run("a", script, |_| {}).await?;
        assert_eq!(lab.exit(&id).await?.code, code, "{script}");
    }
    let script = "echo out; echo err >&2; printf unended; id -u; pwd; echo $A $HOME $HOSTNAME";
    let id = lab
        .run("a", script, |config| {
            lab::edit_process(config, |process| {
                process.set_cwd("/made/here".into());
                process.set_env(Some(vec!["A=b c".into()]));
            });
            config.user = Some("web".into());
        })
        .await?;
    assert_eq!(lab.exit(&id).await?.code, 0);
    let log = lab.log(&id).await?;
    for line in [
        "stdout F out",
        "stderr F err",
        "stdout F unended33",
        "stdout F /made/here",
    ] {
        assert!(log.contains(line), "{line} in {log}");
    }
    assert!(log.contains("stdout F b c /srv pod-a"), "{log}");

    for (argv, words) in [
        (
            vec!["no-such"],
            "exec: \"no-such\": executable file not found in $PATH",
        ),
        (vec!["/no/such"], "stat /no/such: no such file or directory"),
        (
            vec!["/etc/passwd"],
            "exec: \"/etc/passwd\": permission denied",
        ),
    ] {
        let failed = lab
            .run_argv("a", &argv, |_| {})
            .await
            .expect_err("it cannot start");
        assert!(
            matches!(&failed, Error::Start { message, .. } if message.contains(words)),
            "{failed}"
        );
        let pod = lab.runtime.pod("a").await.ok_or("no pod")?;
        let last = pod.containers.last().ok_or("no container")?;
        let Phase::Exited { exit, .. } = &last.phase else {
            return Err("not recorded".into());
        };
        assert_eq!(exit.code, 128);
        assert!(exit.error.contains(words));
    }
    let before = lab.runtime.pod("a").await.ok_or("no pod")?.containers.len();
    let refused = lab
        .run("a", "true", |config| config.must_not_be_root = true)
        .await
        .expect_err("root is refused");
    assert!(
        refused
            .to_string()
            .contains("container has runAsNonRoot and image will run as root")
    );
    let after = lab.runtime.pod("a").await.ok_or("no pod")?.containers.len();
    assert_eq!(before, after, "a refused container leaves nothing");
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn what_a_container_sees() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    let script = "
        echo pid $$; ls /proc/self/fd | tr '\\n' ' '; echo
        grep -E 'Cap|NoNew|Seccomp:' /proc/self/status | tr -s '\\t\\n' ' '; echo
        touch /x && echo root is writable; touch /proc/sys/kernel/x || echo sys is read-only
        cat /proc/kcore | wc -c; ls /proc/acpi | wc -l
        ls -l /dev/null | cut -c1-10; ip link | grep -c UP; df /dev/shm | tail -1
        cat /proc/1/mountinfo | wc -l; ulimit -n; umask; mount | grep -c ' on /sys/fs/cgroup/memory'
        dd if=/dev/zero of=/dev/null count=1 2>/dev/null && echo devices work
        mknod /disk b 254 0 && cat /disk | head -c 1 | wc -c
    ";
    let id = lab
        .run("a", script, |config| {
            lab::edit_process(config, |process| {
                process.set_no_new_privileges(Some(true));
            });
        })
        .await?;
    assert_eq!(lab.exit(&id).await?.code, 0);
    let log = lab.text(&id).await?;
    println!("{log}");
    assert!(log.contains("pid 1\n"));
    assert!(log.contains("\n0 1 2 3 \n"), "3 is the listing itself");
    assert!(log.contains("CapInh: 0000000000000000"));
    assert!(log.contains("CapEff: 00000000a80425fb"));
    assert!(log.contains("NoNewPrivs: 1"));
    assert!(log.contains("root is writable") && log.contains("sys is read-only"));
    assert!(log.contains("\n0\n"), "masked files are empty");
    assert!(log.contains("devices work"));
    assert!(log.ends_with("\n0\n"), "the host's disk cannot be read");

    let id = lab
        .run("a", "touch /x || echo read-only", |config| {
            let mut root = oci_spec::runtime::Root::default();
            root.set_readonly(Some(true));
            config.oci.set_root(Some(root));
        })
        .await?;
    lab.exit(&id).await?;
    assert!(lab.text(&id).await?.contains("read-only"));
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn exec_and_attach() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    let id = lab
        .run(
            "a",
            "echo hello; cat; echo cat ended; sleep 100",
            |config| {
                config.io.stdin = true;
                config.io.stdin_once = true;
            },
        )
        .await?;
    let (output, exit) = lab
        .exec(&id, &["sh", "-c", "cat; echo $$; exit 3"], "typed")
        .await?;
    assert!(output.starts_with("typed"), "{output}");
    assert_ne!(output.trim(), "typed1", "an exec is not the first process");
    assert_eq!(exit.code, 3);
    let failed = lab
        .exec(&id, &["no-such"], "")
        .await
        .expect_err("no program");
    assert!(
        failed.to_string().contains("not found in $PATH"),
        "{failed}"
    );

    let (output, exit) = lab
        .exec_tty(&id, "tty; stty size; exit 4", (80, 24))
        .await?;
    assert!(
        output.contains("/dev/pts/") && output.contains("24 80"),
        "{output}"
    );
    assert_eq!(exit.code, 4);

    let mut session = lab.runtime.attach(&id, true, true, true).await?;
    lab::write_all(session.stdin.take().ok_or("no stdin")?, b"from a client\n")?;
    lab.wait_until("the echo", async || {
        Ok(lab.text(&id).await?.contains("from a client\ncat ended"))
    })
    .await?;
    drop(session);

    // A dropped session takes its process and children along.
    let session = lab
        .runtime
        .exec(
            &id,
            lab::exec_config(&["sh", "-c", "sleep 777 & sleep 778"]),
        )
        .await?;
    lab.wait_until("both sleeps", async || Ok(lab::running("sleep 77") == 2))
        .await?;
    drop(session);
    lab.wait_until("no sleep", async || Ok(lab::running("sleep 77") == 0))
        .await?;
    lab.runtime
        .stop_container(&id, libc::SIGTERM, Duration::ZERO)
        .await?;
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn terminals() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    let id = lab
        .run(
            "a",
            "tty; test -c /dev/console && echo console; read line; echo got $line",
            |config| {
                config.io.tty = true;
                config.io.stdin = true;
            },
        )
        .await?;
    let mut session = lab.runtime.attach(&id, true, true, true).await?;
    assert!(session.stderr.is_none(), "a terminal has one stream");
    lab::write_all(session.stdin.take().ok_or("no stdin")?, b"words\n")?;
    assert_eq!(lab.exit(&id).await?.code, 0);
    let log = lab.text(&id).await?;
    assert!(
        log.contains("/dev/pts/0") && log.contains("console"),
        "{log}"
    );
    assert!(log.contains("got words"), "{log}");
    assert_eq!(session.exit.await??.code, 0);
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn stopping_limits_and_memory() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    let id = lab
        .run(
            "a",
            "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done",
            |_| {},
        )
        .await?;
    lab.wait_until("the trap", async || Ok(lab.text(&id).await?.contains("up")))
        .await?;
    lab.runtime
        .stop_container(&id, libc::SIGTERM, SECOND * 20)
        .await?;
    assert_eq!(lab.exit(&id).await?.code, 5);

    let id = lab.run("a", "sleep 1000", |_| {}).await?;
    let began = Instant::now();
    lab.runtime
        .stop_container(&id, libc::SIGTERM, Duration::from_millis(300))
        .await?;
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "PID 1 has no handler, so it is given its time"
    );
    let exit = lab.exit(&id).await?;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(!exit.oom_killed);

    let id = lab
        .run(
            "a",
            "head -c 100m /dev/zero | tail | wc -c; sleep 0; tail /dev/zero",
            |config| {
                lab::limit(config, Some(16 << 20), None);
            },
        )
        .await?;
    let exit = lab.exit(&id).await?;
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(exit.code, 137);

    let script = "i=0; while [ $i -lt 20 ]; do sleep 1 & i=$((i+1)); done; wait";
    let id = lab
        .run("a", script, |config| lab::limit(config, None, Some(5)))
        .await?;
    let usage = lab.runtime.container_usage(&id).await?;
    assert!(usage.pids <= 5, "{usage:?}");
    assert_ne!(lab.exit(&id).await?.code, 0);
    assert!(lab.text(&id).await?.contains("can't fork"));
    lab.runtime.remove_container(&id).await?;
    assert!(lab.runtime.pod_usage("a").await?.memory_bytes > 0);
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_new_daemon_finds_everything() -> TestResult {
    let mut lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    let script = "echo one; read line; echo two $line; exit 9";
    let waiting = lab
        .run("a", script, |config| config.io.stdin = true)
        .await?;
    let ended = lab.run("a", "exit 4", |_| {}).await?;
    lab.exit(&ended).await?;
    lab.reopen().await?;
    assert_eq!(lab.exit(&ended).await?.code, 4);
    let mut events = lab.runtime.events();
    let mut session = lab.runtime.attach(&waiting, true, false, false).await?;
    lab::write_all(session.stdin.take().ok_or("no stdin")?, b"x\n")?;
    assert_eq!(lab.exit(&waiting).await?.code, 9);
    assert_eq!(events.recv().await?.pod_uid, "a");
    assert!(lab.text(&waiting).await?.contains("two x"));

    let exits_alone = lab
        .run("a", "read line < /dev/null; sleep 0.2; exit 6", |_| {})
        .await?;
    lab.drop_runtime().await?;
    lab.wait_until("the record", async || {
        let state = lab
            .root
            .path()
            .join(format!("run/pods/a/containers/{exits_alone}/state.json"));
        Ok(std::fs::read_to_string(state)?.contains("Exited"))
    })
    .await?;
    lab.reopen().await?;
    assert_eq!(lab.exit(&exits_alone).await?.code, 6);

    // Without its supervisor a pod is not alive, and can still be removed.
    let id = lab.run("a", "sleep 1000", |_| {}).await?;
    lab.kill_supervisor("a")?;
    lab.wait_until("its end to be seen", async || {
        Ok(lab.runtime.pod("a").await.is_some_and(|pod| !pod.alive))
    })
    .await?;
    assert_eq!(lab.exit(&id).await?.code, 137);
    lab.reopen().await?;
    assert!(lab.runtime.pod("a").await.is_some_and(|pod| !pod.alive));
    lab.end().await
}

/// The supervisor is there before its pod's group: a daemon that ends in between leaves none.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_pod_that_is_taken_over_without_its_group_is_limited_again() -> TestResult {
    let mut lab = Lab::new().await?;
    let pids = LinuxPidsBuilder::default().limit(77_i64).build()?;
    let limited = LinuxResourcesBuilder::default().pids(pids).build()?;
    lab.create_pod("p1", |pod| pod.resources = Some(limited))
        .await?;
    assert_eq!(lab.pids_limit("p1")?.trim(), "77");
    lab.remove_pod_group("p1")?;
    lab.reopen().await?;
    assert_eq!(lab.pids_limit("p1")?.trim(), "77");
    lab.run("p1", "true", |_| {}).await?;
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn what_a_failed_try_has_left_is_in_nobodys_way() -> TestResult {
    let lab = Lab::new().await?;
    let left = lab.root.path().join("run/pods/p1");
    std::fs::create_dir(&left)?;
    std::fs::write(left.join("pod.tmp"), "half a rec")?;
    lab.create_pod("p1", |_| {}).await?;
    lab.run("p1", "true", |_| {}).await?;
    // Only what nobody has is taken for a leftover.
    assert!(lab.create_pod("p1", |_| {}).await.is_err());
    assert!(lab.runtime.pod("p1").await.is_some_and(|pod| pod.alive));
    lab.runtime.remove_pod("p1").await?;
    std::fs::create_dir(&left)?;
    lab.runtime.remove_pod("p1").await?;
    assert!(!left.exists());
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn namespaces_of_pods() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("shared", |config| config.share_processes = true)
        .await?;
    lab.create_pod("host", |config| {
        config.host_network = true;
        config.host_pid = true;
        config.host_ipc = true;
    })
    .await?;
    assert!(lab.runtime.netns("host").await?.is_none());
    assert!(lab.runtime.netns("shared").await?.is_some());
    let first = lab.run("shared", "sleep 1234", |_| {}).await?;
    let script = "cat /proc/1/comm; ps | grep -c 'sleep 123[4]'; sleep 4321 & exit 0";
    let second = lab.run("shared", script, |_| {}).await?;
    assert_eq!(lab.exit(&second).await?.code, 0);
    let text = lab.text(&second).await?;
    assert!(text.starts_with("pod-init\n1\n"), "{text}");
    lab.wait_until("what it left", async || Ok(lab::running("sleep 4321") == 0))
        .await?;
    assert!(
        matches!(lab.phase(&first).await?, Phase::Running { .. }),
        "its neighbour goes on"
    );

    let id = lab
        .run("host", "ls -l /proc/self/ns; echo $$", |_| {})
        .await?;
    lab.exit(&id).await?;
    let text = lab.text(&id).await?;
    for name in ["net", "ipc", "pid"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{name}"))?;
        assert!(text.contains(&*own.to_string_lossy()), "{name} in {text}");
    }
    // Memory that one container of a pod shares, the next one sees.
    lab.create_pod("mem", |_| {}).await?;
    let id = lab.run("mem", "echo shared > /dev/shm/f", |_| {}).await?;
    lab.exit(&id).await?;
    let id = lab
        .run("mem", "cat /dev/shm/f; hostname; ipcs -q | wc -l", |_| {})
        .await?;
    lab.exit(&id).await?;
    assert!(lab.text(&id).await?.starts_with("shared\npod-mem\n"));
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn volumes() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    let volume = lab.root.path().join("volume");
    std::fs::create_dir(&volume)?;
    std::fs::write(volume.join("file"), "content")?;
    let script = "cat /data/deep/file; touch /data/deep/new && echo written; \
                  touch /ro/file || echo refused; cat /etc/one; ls /outside";
    let id = lab
        .run("a", script, |config| {
            lab::add_mount(config, &volume, "/data/deep", &["rbind", "rprivate", "rw"]);
            lab::add_mount(config, &volume, "/ro", &["rbind", "rprivate", "ro"]);
            lab::add_mount(config, &volume.join("file"), "/etc/one", &["bind", "ro"]);
            // The image has /link -> /../../../outside: that is a name inside its own root.
            lab::add_mount(config, &volume, "/link", &["bind"]);
        })
        .await?;
    lab.exit(&id).await?;
    let text = lab.text(&id).await?;
    assert!(text.starts_with("contentwritten\n"), "{text}");
    assert!(text.contains("refused\n"), "{text}");
    assert!(text.ends_with("contentfile\nnew\n"), "{text}");
    let failed = lab
        .run("a", "true", |config| {
            lab::add_mount(config, &volume, "/proc/self/attr", &["bind"]);
        })
        .await
        .expect_err("nothing is mounted below /proc");
    assert!(failed.to_string().contains("inside /proc"), "{failed}");
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn mount_points_that_are_exchanged_meanwhile() -> TestResult {
    use std::sync::atomic::{AtomicBool, Ordering};
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    let [shared, volume, outside] =
        ["shared", "volume", "outside"].map(|name| lab.root.path().join(name));
    for folder in [&shared.join("place"), &volume, &outside] {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(outside.join("secret"), "of the host")?;
    let up = format!("../../../../../../../..{}", outside.display());
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let exchanging = std::thread::spawn({
        let done = done.clone();
        let [place, aside] = ["place", "aside"].map(|name| shared.join(name));
        move || {
            while !done.load(Ordering::Relaxed) {
                let _ = std::fs::rename(&place, &aside);
                if std::os::unix::fs::symlink(&up, &place).is_ok() {
                    let _ = std::fs::remove_file(&place);
                }
                // One may have been made in its stead.
                while aside.exists() && std::fs::rename(&aside, &place).is_err() {
                    let _ = std::fs::remove_dir_all(&place);
                }
            }
        }
    });
    let mut started = 0;
    for _ in 0..60 {
        let script = "cat /data/place/secret /data/place/new/secret; find /data/place";
        let run = lab.run("a", script, |config| {
            lab::add_mount(config, &shared, "/data", &["rbind", "rprivate", "rw"]);
            lab::add_mount(
                config,
                &volume,
                "/data/place/new",
                &["rbind", "rprivate", "rw"],
            );
        });
        // Refused, or inside: either is right.
        if let Ok(id) = run.await {
            lab.exit(&id).await?;
            let text = lab.text(&id).await?;
            assert!(!text.contains("of the host"), "{text}");
            started += 1;
        }
    }
    done.store(true, Ordering::Relaxed);
    exchanging.join().map_err(|_| "the exchange failed")?;
    assert!(started > 0, "none could be started");
    let names = std::fs::read_dir(&outside)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<std::io::Result<Vec<_>>>()?;
    assert_eq!(names, ["secret"], "nothing was made on the host");
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn system_call_filters() -> TestResult {
    let lab = Lab::new().await?;
    lab.create_pod("a", |_| {}).await?;
    for no_new_privileges in [false, true] {
        let script = "mkdir /x || echo refused; grep Seccomp: /proc/self/status; \
                      grep CapEff /proc/self/status; sleep 100";
        let id = lab
            .run("a", script, |config| {
                config.user = Some("web".into());
                lab::edit_process(config, |process| {
                    process.set_no_new_privileges(Some(no_new_privileges));
                });
                let profile = serde_json::json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
                });
                let mut linux = config.oci.linux().clone().unwrap();
                linux.set_seccomp(Some(serde_json::from_value(profile).unwrap()));
                config.oci.set_linux(Some(linux));
            })
            .await?;
        lab.wait_until("its words", async || {
            Ok(lab.text(&id).await?.contains("CapEff"))
        })
        .await?;
        // The refusal's own line comes by another pipe and may stand anywhere between these.
        let text = lab.text(&id).await?;
        for line in ["refused", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
            assert!(text.lines().any(|l| l == line), "{line:?} in {text}");
        }
        let argv = [
            "sh",
            "-c",
            "mkdir /tmp/x || grep -E 'Seccomp:|CapEff|Uid' /proc/self/status",
        ];
        let (output, _) = lab.exec(&id, &argv, "").await?;
        assert!(
            output.contains("Uid:\t33\t33") && output.contains("Seccomp:\t2"),
            "{output}"
        );
        assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
    }
    lab.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn speed() -> TestResult {
    let lab = Lab::new().await?;
    let mut times = Vec::new();
    for round in 0..10 {
        let name = format!("s{round}");
        let began = Instant::now();
        lab.create_pod(&name, |_| {}).await?;
        let pod = began.elapsed();
        let id = lab.run(&name, "true", |_| {}).await?;
        let container = began.elapsed() - pod;
        lab.exit(&id).await?;
        let began = Instant::now();
        lab.runtime.remove_pod(&name).await?;
        times.push((pod, container, began.elapsed()));
    }
    for (pod, container, remove) in times {
        println!("create_pod {pod:?}, run_container {container:?}, remove_pod {remove:?}");
    }
    lab.create_pod("memory", |_| {}).await?;
    lab.run("memory", "sleep 100", |_| {}).await?;
    println!("supervisor: {}", lab.supervisor_memory("memory")?);
    lab.end().await
}
