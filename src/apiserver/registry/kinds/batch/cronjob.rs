//! Cron jobs.

use serde_json::{Value, json};

use super::job;
use crate::apiserver::registry::{
    Behaviour, Causes, PLAIN, Resource,
    Subresource::Status,
    kinds::{
        cells::{
            NONE, label_selector, len, since, template_containers, template_images, text_or_none,
        },
        names,
        pods::{self, defaults},
        row::{self, AGE, column, count, wide},
        value::{at, default_text, default_to, flag, has, set, text},
    },
};

const CONTAINERS: &str = "spec.jobTemplate.spec.template.spec.containers";

pub const ROW: Resource = Resource {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Status],
    columns: &[
        column("Schedule", |cron| row::cell(cron, "spec.schedule")),
        column("Timezone", |cron| text_or_none(cron, "spec.timeZone")),
        column("Suspend", |cron| match flag(cron, "spec.suspend") {
            true => "True".into(),
            false => "False".into(),
        }),
        count("Active", |cron| len(cron, "status.active").into()),
        column("Last Schedule", |cron| {
            match has(cron, "status.lastScheduleTime") {
                true => since(cron, "status.lastScheduleTime").into(),
                false => NONE.into(),
            }
        }),
        AGE,
        wide("Containers", |cron| template_containers(cron, CONTAINERS)),
        wide("Images", |cron| template_images(cron, CONTAINERS)),
        wide("Selector", |cron| {
            label_selector(cron, "spec.jobTemplate.spec.selector")
        }),
    ],
    behaviour: Behaviour {
        warnings: |new, old| pods::warnings::template("spec.jobTemplate.spec.template", new, old),
        default,
        prepare_create: |cron| set(cron, "status", json!({})),
        validate,
        generation: true,
        ..PLAIN
    },
    ..row::namespaced(
        "batch",
        "v1",
        "CronJob",
        "cronjobs",
        "cronjob",
        "io.k8s.api.batch.v1.CronJob",
    )
};

fn default(cron: &mut Value) {
    default_text(cron, "spec.concurrencyPolicy", "Allow");
    default_to(cron, "spec.suspend", false);
    default_to(cron, "spec.successfulJobsHistoryLimit", 3);
    default_to(cron, "spec.failedJobsHistoryLimit", 1);
    defaults::template(cron, "spec.jobTemplate.spec.template");
}

fn validate(cron: &Value, causes: &mut Causes) {
    names::object_name(cron, names::dns_subdomain, causes);
    let name = text(cron, "metadata.name");
    if name.len() > 52 {
        causes.invalid("metadata.name", name, "must be no more than 52 characters");
    }
    let schedule = text(cron, "spec.schedule");
    if schedule.is_empty() {
        causes.required("spec.schedule", "");
    } else if schedule.contains("TZ") {
        causes.invalid(
            "spec.schedule",
            schedule,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    } else if let Err(why) = check_schedule(schedule) {
        causes.invalid("spec.schedule", schedule, &why);
    }
    if has(cron, "spec.timeZone") {
        let zone = text(cron, "spec.timeZone");
        if zone.is_empty() {
            causes.invalid(
                "spec.timeZone",
                zone,
                "timeZone must be nil or non-empty string",
            );
        } else if zone.eq_ignore_ascii_case("local") || jiff::tz::TimeZone::get(zone).is_err() {
            causes.invalid("spec.timeZone", zone, "unknown time zone");
        }
    }
    for path in [
        "spec.startingDeadlineSeconds",
        "spec.successfulJobsHistoryLimit",
        "spec.failedJobsHistoryLimit",
    ] {
        names::not_negative(cron, path, causes);
    }
    match text(cron, "spec.concurrencyPolicy") {
        "Allow" | "Forbid" | "Replace" => {}
        other => causes.unsupported(
            "spec.concurrencyPolicy",
            other,
            &["Allow", "Forbid", "Replace"],
        ),
    }
    if has(cron, "spec.jobTemplate.spec.manualSelector")
        && at(cron, "spec.jobTemplate.spec.manualSelector") != Some(&Value::Bool(false))
    {
        causes.unsupported(
            "spec.jobTemplate.spec.manualSelector",
            "true",
            &["nil", "false"],
        );
    }
    job::spec(
        &cron["spec"]["jobTemplate"]["spec"],
        "spec.jobTemplate.spec",
        causes,
    );
}

/// Five fields or a macro; each field a list of ranges with steps.
fn check_schedule(schedule: &str) -> Result<(), String> {
    const MACROS: [&str; 7] = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    if MACROS.contains(&schedule) || schedule.starts_with("@every ") {
        return Ok(());
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    const MONTHS: [&str; 12] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    for (field, (low, high, words)) in fields.iter().zip([
        (0, 59, &[][..]),
        (0, 23, &[][..]),
        (1, 31, &[][..]),
        (1, 12, &MONTHS[..]),
        (0, 6, &DAYS[..]),
    ]) {
        for part in field.split(',') {
            check_part(part, low, high, words)?;
        }
    }
    Ok(())
}

fn check_part(part: &str, low: i64, high: i64, words: &[&str]) -> Result<(), String> {
    let (range, step) = part
        .split_once('/')
        .map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step
        && step.parse::<i64>().ok().filter(|step| *step > 0).is_none()
    {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if matches!(range, "*" | "?") {
        return Ok(());
    }
    let number = |text: &str| {
        let word = words
            .iter()
            .position(|word| text.eq_ignore_ascii_case(word));
        match word {
            Some(word) => Ok(low + i64::try_from(word).unwrap_or_default()),
            None => text
                .parse::<i64>()
                .map_err(|_| format!("failed to parse int from {text}: {part}")),
        }
    };
    let (start, end) = match range.split_once('-') {
        Some((start, end)) => (number(start)?, number(end)?),
        None => (number(range)?, number(range)?),
    };
    if start < low {
        Err(format!(
            "beginning of range ({start}) below minimum ({low}): {part}"
        ))
    } else if end > high {
        Err(format!(
            "end of range ({end}) above maximum ({high}): {part}"
        ))
    } else if start > end {
        Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {part}"
        ))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for (schedule, fine) in [
            ("*/5 * * * *", true),
            ("@hourly", true),
            ("0 0 1-5,7 JAN mon-fri", true),
            ("60 * * * *", false),
            ("* * * *", false),
            ("* * 0 * *", false),
            ("*/0 * * * *", false),
        ] {
            assert_eq!(check_schedule(schedule).is_ok(), fine, "{schedule}");
        }
    }
}
