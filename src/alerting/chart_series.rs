//! Maps an alert to the recorded series and the threshold to draw in its chart.

use serde::{Deserialize, Serialize};

use super::lifecycle::{Alert, Kind};
use super::rule::{Per, RuleSet};

/// Series and threshold for the chart of an alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Charted {
    /// Series name.
    pub series: String,
    /// Threshold beyond which the condition holds.
    pub limit: Option<f64>,
    /// Unit, appended to values.
    pub unit: String,
}

impl Charted {
    /// Returns the series of an alert, if there is one.
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
