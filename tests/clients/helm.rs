//! helm 3 and 4: a chart's whole life, with the definitions that it brings.

use std::{path::PathBuf, process::Output};

use crate::{
    file, installed,
    lab::{Cluster, text, until_none},
};

struct Helm {
    cluster: Cluster,
    program: PathBuf,
    /// What takes a failed release back, which has another name in each.
    atomic: &'static str,
}

impl Helm {
    fn new(client: &str, atomic: &'static str) -> Self {
        let program = installed(client);
        let cluster = Cluster::started();
        cluster.import("busybox");
        Self {
            cluster,
            program,
            atomic,
        }
    }

    fn run(&self, line: &str) -> Output {
        let root = self.cluster.root.path();
        self.cluster
            .host
            .command(&self.program)
            .env("HOME", root)
            .env("KUBECONFIG", root.join("etc/admin.kubeconfig"))
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    /// `helm VERB RELEASE`, for verbs that take the chart.
    fn chart(&self, verb: &str, release: &str, flags: &str) -> Output {
        let chart = file("chart");
        self.run(&format!("{verb} {release} {} {flags}", chart.display()))
    }

    fn ok(&self, output: &Output) {
        assert!(output.status.success(), "{}", text(output));
    }

    fn refused(&self, output: &Output, because: &str) {
        let said = text(output);
        assert!(!output.status.success() && said.contains(because), "{said}");
    }

    /// What matters of a release's objects, and a version that only a change makes another.
    fn picture(&self) -> String {
        let path = "jsonpath={range .items[*]}{.kind} {.metadata.uid} {.metadata.generation} \
                    {.data} {.spec}{'\\n'}{end}";
        let kinds = "configmaps,gadgets,services,serviceaccounts,deployments,ingresses";
        let output = self
            .cluster
            .ok_with(&["get", kinds, "-l", "of!=nothing", "-o", path]);
        assert!(output.contains("Deployment"), "{output}");
        output
    }

    fn text_of(&self, object: &str, path: &str) -> String {
        self.cluster.field(object, path)
    }

    fn names(&self, kinds: &str) -> Vec<String> {
        let names = self
            .cluster
            .ok(&format!("get {kinds} --ignore-not-found -o name"));
        let ours = names.lines().filter(|name| name.contains("shop"));
        ours.map(str::to_owned).collect()
    }
}

const ALL: &str = "jobs,configmaps,services,serviceaccounts,deployments,replicasets,pods,\
                   ingresses,secrets,gadgets";

fn a_charts_whole_life(helm: &Helm) {
    // Refused as a whole, it leaves only the definitions, which helm never takes away.
    let broken = helm.chart(
        "install",
        "shop",
        &format!("--set broken=true {}", helm.atomic),
    );
    helm.refused(&broken, "must be an absolute path");
    until_none("objects of a failed release", || helm.names(ALL));

    helm.ok(&helm.chart("install", "shop", "--wait --timeout=60s"));
    assert_eq!(
        helm.text_of("deployment/shop", ".status.readyReplicas"),
        "1"
    );
    assert_eq!(helm.text_of("gadget/shop", ".spec.parts[*].count"), "1 2");
    assert_eq!(helm.names("jobs"), Vec::<String>::new());

    // The same again changes nothing.
    let first = helm.picture();
    helm.ok(&helm.chart("upgrade", "shop", "--wait --timeout=60s"));
    assert_eq!(helm.picture(), first);

    let two = "--set text=two,widget=true";
    helm.ok(&helm.chart("upgrade", "shop", &format!("{two} --wait --timeout=60s")));
    let environment = ".spec.template.spec.containers[0].env[0].value";
    assert_eq!(helm.text_of("deployment/shop", environment), "two");
    assert_eq!(helm.text_of("gadget/shop", ".spec.text"), "two");
    assert_eq!(helm.text_of("widget/shop", ".spec.size"), "1");

    // Refused by a rule of a definition, by a schema, by a kind's own checks: all is as before.
    for (flags, because) in [
        ("text=three,broken=true", "must be an absolute path"),
        ("text=longer-than-twenty-characters", "Too long"),
    ] {
        let flags = format!("--set widget=true,{flags} --timeout=60s {}", helm.atomic);
        helm.refused(&helm.chart("upgrade", "shop", &flags), because);
        assert_eq!(helm.text_of("deployment/shop", environment), "two");
        assert_eq!(helm.text_of("configmap/shop", ".data.text"), "two");
        assert_eq!(helm.text_of("gadget/shop", ".spec.text"), "two");
        assert_eq!(helm.text_of("widget/shop", ".spec.size"), "1");
        assert_eq!(helm.names("ingresses"), Vec::<String>::new());
        let texts = "get pods -o jsonpath={.items[*].spec.containers[0].env[0].value}";
        helm.cluster.wait(texts, "two");
    }

    helm.ok(&helm.run("rollback shop 1 --wait --timeout=60s"));
    assert_eq!(helm.text_of("gadget/shop", ".spec.text"), "one");
    assert_eq!(helm.text_of("deployment/shop", environment), "one");
    assert_eq!(helm.names("widgets.shop.example.com"), Vec::<String>::new());

    helm.ok(&helm.run("uninstall shop --wait --timeout=60s"));
    until_none("objects of an uninstalled release", || helm.names(ALL));
    assert_eq!(
        helm.names("crds"),
        ["customresourcedefinition.apiextensions.k8s.io/gadgets.shop.example.com"]
    );
}

#[test]
#[ignore = "needs root"]
fn helm_3_installs_upgrades_rolls_back_and_uninstalls() {
    a_charts_whole_life(&Helm::new("helm-3", "--atomic"));
}

#[test]
#[ignore = "needs root"]
fn helm_4_installs_upgrades_rolls_back_and_uninstalls() {
    a_charts_whole_life(&Helm::new("helm-4", "--rollback-on-failure"));
}
