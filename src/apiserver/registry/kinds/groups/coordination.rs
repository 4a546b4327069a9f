//! Leases.

use crate::apiserver::registry::{
    Behaviour, PLAIN, Resource,
    kinds::{
        names,
        row::{self, AGE, column},
        value::number,
    },
};

pub const LEASE: Resource = Resource {
    columns: &[
        column("Holder", |lease| row::cell(lease, "spec.holderIdentity")),
        AGE,
    ],
    behaviour: Behaviour {
        validate: |lease, causes| {
            names::object_name(lease, names::dns_subdomain, causes);
            if let Some(seconds) =
                number(lease, "spec.leaseDurationSeconds").filter(|seconds| *seconds <= 0)
            {
                causes.invalid(
                    "spec.leaseDurationSeconds",
                    seconds,
                    "must be greater than 0",
                );
            }
            names::not_negative(lease, "spec.leaseTransitions", causes);
        },
        create_on_update: true,
        unconditional_update: false,
        ..PLAIN
    },
    ..row::namespaced(
        "coordination.k8s.io",
        "v1",
        "Lease",
        "leases",
        "lease",
        "io.k8s.api.coordination.v1.Lease",
    )
};
