//! Pairs of a field and its list, of which the field is the first item: `podIP` and `podIPs`. Pure.
//!
//! Clients from before the list know the field alone. What they write counts for both, so that a
//! change is made, or refused, and never silently lost.

use serde_json::{Value, json};

use super::value::{at, items, remove, set, text};

/// How an item of the list holds what the field holds.
#[derive(Clone, Copy, Debug)]
enum Form {
    Text,
    /// `{"ip": "10.0.0.1"}`
    Ip,
}

#[derive(Clone, Copy, Debug)]
pub struct Twins {
    one: &'static str,
    all: &'static str,
    form: Form,
}

pub const CLUSTER_IPS: Twins = Twins {
    one: "spec.clusterIP",
    all: "spec.clusterIPs",
    form: Form::Text,
};
pub const POD_CIDRS: Twins = Twins {
    one: "spec.podCIDR",
    all: "spec.podCIDRs",
    form: Form::Text,
};
pub const POD_IPS: Twins = Twins {
    one: "status.podIP",
    all: "status.podIPs",
    form: Form::Ip,
};

impl Twins {
    fn first<'a>(&self, object: &'a Value) -> &'a str {
        let first = items(object, self.all).first();
        match (self.form, first) {
            (_, None) => "",
            (Form::Text, Some(item)) => item.as_str().unwrap_or_default(),
            (Form::Ip, Some(item)) => text(item, "ip"),
        }
    }

    fn list(&self, one: &str) -> Value {
        match self.form {
            Form::Text => json!([one]),
            Form::Ip => json!([{"ip": one}]),
        }
    }

    /// The field counts where both are there and disagree, as upstream reads every object.
    pub fn agree(&self, object: &mut Value) {
        let (one, first) = (text(object, self.one), self.first(object));
        if one == first {
            return;
        }
        match one {
            "" => {
                let first = first.to_owned();
                set(object, self.one, first);
            }
            one => {
                let list = self.list(one);
                set(object, self.all, list);
            }
        }
    }

    /// The list that a new object's field asks for, if it has none.
    pub fn complete(&self, object: &mut Value) {
        let one = text(object, self.one);
        if !one.is_empty() && items(object, self.all).is_empty() {
            let list = self.list(one);
            set(object, self.all, list);
        }
    }

    /// A change of the field alone is one of the list as well; a list that is left out stays as it was.
    pub fn follow(&self, new: &mut Value, old: &Value) {
        let same = text(new, self.one) == text(old, self.one);
        if same && items(new, self.all).is_empty() && !text(new, self.one).is_empty() {
            if let Some(list) = at(old, self.all) {
                set(new, self.all, list.clone());
            }
            return;
        }
        if same || items(new, self.all) != items(old, self.all) {
            return;
        }
        match text(new, self.one) {
            "" => drop(remove(new, self.all)),
            one => {
                let list = self.list(one);
                set(new, self.all, list);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_counts_for_the_list() {
        for (before, after) in [
            (
                json!({"podIP": "a"}),
                json!({"podIP": "a", "podIPs": [{"ip": "a"}]}),
            ),
            (
                json!({"podIPs": [{"ip": "a"}]}),
                json!({"podIP": "a", "podIPs": [{"ip": "a"}]}),
            ),
            (
                json!({"podIP": "b", "podIPs": [{"ip": "a"}, {"ip": "c"}]}),
                json!({"podIP": "b", "podIPs": [{"ip": "b"}]}),
            ),
            (
                json!({"podIP": "a", "podIPs": [{"ip": "a"}, {"ip": "c"}]}),
                json!({"podIP": "a", "podIPs": [{"ip": "a"}, {"ip": "c"}]}),
            ),
            (json!({}), json!({})),
        ] {
            let mut object = json!({"status": before});
            POD_IPS.agree(&mut object);
            assert_eq!(object, json!({"status": after}), "{before}");
        }
    }

    #[test]
    fn what_an_update_of_one_of_them_means() {
        let old = json!({"spec": {"clusterIP": "a", "clusterIPs": ["a", "b"]}});
        for (new, want) in [
            // An old client changes what it knows.
            (
                json!({"clusterIP": "c", "clusterIPs": ["a", "b"]}),
                json!({"clusterIP": "c", "clusterIPs": ["c"]}),
            ),
            // An old client leaves out what it does not know.
            (
                json!({"clusterIP": "a"}),
                json!({"clusterIP": "a", "clusterIPs": ["a", "b"]}),
            ),
            (
                json!({"clusterIP": "", "clusterIPs": ["a", "b"]}),
                json!({"clusterIP": ""}),
            ),
            // Both at once: validation compares them.
            (
                json!({"clusterIP": "c", "clusterIPs": ["d"]}),
                json!({"clusterIP": "c", "clusterIPs": ["d"]}),
            ),
            (json!({}), json!({})),
        ] {
            let mut object = json!({"spec": new});
            CLUSTER_IPS.follow(&mut object, &old);
            assert_eq!(object, json!({"spec": want}), "{new}");
        }
    }
}
