//! In which order are the steps of a login checked, and where does the check of a target stop?

use std::time::Instant;

use serde_json::json;

use super::login::CheckedLogin;
use super::report::{Failure, Step, StepReport, StepStatus};
use super::reporter::Reporter;
use super::steps::{StepDetails, StepResult, Steps, dns, select, tcp};

/// Checks the steps in their order, up to the first that fails. The report has the later steps too,
/// as not tried.
pub async fn check_target(steps: &Steps<'_>, reporter: &Reporter) -> Vec<StepReport> {
    let mut recorder = StepRecorder {
        reporter,
        reports: Vec::new(),
    };
    // The recorder knows which step has failed, and why.
    let _: Result<(), StepFailed> = log_in(steps, &mut recorder).await;
    for step in Step::ALL.into_iter().skip(recorder.reports.len()) {
        recorder.add(StepReport::not_tried(step));
    }
    recorder.reports
}

async fn log_in(steps: &Steps<'_>, recorder: &mut StepRecorder<'_>) -> Result<(), StepFailed> {
    let route = recorder.run(Step::Route, async { steps.route() }).await?;
    let caller = recorder.run(Step::Identity, steps.identity(&route)).await?;
    let login = CheckedLogin {
        target: steps.target,
        route: &route,
        caller: caller.as_ref(),
        endpoint: None,
    };
    let endpoint = recorder.run(Step::Endpoint, steps.endpoint(login)).await?;
    let login = CheckedLogin {
        endpoint: Some(&endpoint),
        ..login
    };
    let lease = recorder
        .run(Step::Mint, steps.mint(login, &endpoint))
        .await?;
    let addresses = recorder.run(Step::Dns, dns(login, &endpoint)).await?;
    let reached = recorder.run(Step::Tcp, tcp(login, &addresses)).await?;
    let connection = recorder
        .run(Step::Tls, steps.tls(login, reached, &endpoint))
        .await?;
    let session = recorder
        .run(Step::Login, steps.log_in(login, connection, &lease))
        .await?;
    recorder.run(Step::Select, select(session)).await
}

/// A step has failed, and its report says why.
struct StepFailed;

/// Runs steps, measures their time, and has each report printed as soon as it is there.
struct StepRecorder<'a> {
    reporter: &'a Reporter,
    reports: Vec<StepReport>,
}

impl StepRecorder<'_> {
    async fn run<T>(
        &mut self,
        step: Step,
        work: impl Future<Output = StepResult<T>>,
    ) -> Result<T, StepFailed> {
        self.reporter.begin_step(step);
        let started = Instant::now();
        // Boxed, because the futures of the AWS SDK are large.
        let result = Box::pin(work).await;
        let ms = Some((started.elapsed().as_secs_f64() * 1e6).round() / 1e3);
        match result {
            Ok((value, details)) => {
                let StepDetails {
                    status,
                    text,
                    facts,
                } = details;
                self.add(StepReport {
                    step,
                    status,
                    ms,
                    text: Some(text),
                    facts,
                    explanation: None,
                    remedy: None,
                });
                Ok(value)
            }
            Err(Failure { error, advice }) => {
                self.add(StepReport {
                    step,
                    status: StepStatus::Failed,
                    ms,
                    text: Some(error),
                    facts: json!({}),
                    explanation: Some(advice.explanation),
                    remedy: Some(advice.remedy),
                });
                Err(StepFailed)
            }
        }
    }

    fn add(&mut self, report: StepReport) {
        self.reporter.end_step(&report);
        self.reports.push(report);
    }
}
