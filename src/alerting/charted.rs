//! Which recorded series shows what an alert is about, and beyond what it fires.

use serde::{Deserialize, Serialize};

use super::lifecycle::{Alert, Kind};
use super::rule::{Per, RuleSet};

/// The recorded series that shows what an alert is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Charted {
    /// Its name.
    pub series: String,
    /// Beyond which the alert's condition holds.
    pub limit: Option<f64>,
    /// What follows its figures.
    pub unit: String,
}

impl Charted {
    /// The series of an alert, if there is one.
    #[must_use]
    pub fn of(alert: &Alert, rules: &RuleSet) -> Option<Self> {
        let subject = alert.subject.as_deref();
        match alert.kind {
            Kind::WorkerDown | Kind::PartialLoss => Some(Self {
                series: format!("workers_alive:{}", subject?),
                limit: (alert.kind == Kind::WorkerDown).then_some(1.0),
                unit: String::new(),
            }),
            Kind::Source | Kind::Happening => None,
            Kind::Rule => {
                let rule = rules.rules.iter().find(|rule| rule.name == alert.rule)?;
                let metric = rule.watch.metric;
                let series = match (metric.per(), subject) {
                    (Per::Whole, _) => metric.series()?.to_owned(),
                    (_, Some(subject)) => format!("{}:{subject}", metric.series()?),
                    (_, None) => return None,
                };
                let limit = rule.bound.limit().filter(|_| rule.watch.change_over.is_none());
                Some(Self { series, limit, unit: metric.unit().to_owned() })
            }
        }
    }
}
