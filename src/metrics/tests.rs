//! Series: bounded, and gone with what they count.

use super::*;
use crate::outcome::{Code, Ending};
use crate::tokens::{Nano, Usage};

fn series(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

/// An organization, and the models that it may use.
fn acme(models: &[&str]) -> (OrgId, Vec<ModelName>) {
    ("acme".parse().unwrap(), models.iter().map(|model| model.parse().unwrap()).collect())
}

#[test]
fn strangers_and_unconfigured_models_mint_no_series() {
    let metrics = Metrics::new().unwrap();
    metrics.configured(Configured { orgs: &[acme(&["gpt-5"])], ..Configured::default() }, Mono(0));
    let org = metrics.org(&acme(&[]).0);
    let act = |number: u16| {
        let model: ModelName = format!("made-up-{number}").parse().unwrap();
        let figures = metrics.model(&model);
        figures.first_token(Duration::from_millis(3));
        org.charged(&figures, &Usage { input: 1, ..Usage::default() }, Nano(5), "reported");
        org.request(Some(Route::Chat), 200 + number % 400);
        org.request(None, 404);
        org.refused(Code::RouteNotFound);
        metrics.exchange(None, 404, Duration::ZERO, 0, 0);
    };
    (0..500).for_each(act);
    let before = series(&metrics.render());
    (500..5000).for_each(act);
    assert_eq!(series(&metrics.render()), before);
}

#[test]
fn what_is_configured_begins_with_zeros() {
    let metrics = Metrics::new().unwrap();
    let purposes = ["research".parse().unwrap()];
    let upstreams = ["primary".parse().unwrap()];
    let upstream = metrics.upstream(&upstreams[0]);
    let configured = Configured { orgs: &[acme(&["gpt-5"])], purposes: &purposes, upstreams: &upstreams };
    metrics.configured(configured, Mono(0));
    let text = metrics.render();
    for zero in [
        "portcullis_purpose_requests_total{decision=\"deny\",org=\"acme\",purpose=\"research\"} 0",
        "portcullis_requests_total{code=\"200\",org=\"acme\",route=\"chat\"} 0",
        "portcullis_severed_streams_total{cause=\"organization_suspended\",org=\"acme\"} 0",
        "portcullis_output_tokens_total{model=\"gpt-5\",org=\"acme\"} 0",
        "portcullis_cost_total{model=\"other\",org=\"acme\"} 0",
        "portcullis_usage_disputed_total{model=\"other\",org=\"acme\"} 0",
        "portcullis_upstream_requests_total{code=\"200\",upstream=\"primary\"} 0",
        "portcullis_upstream_requests_total{code=\"upstream_timeout\",upstream=\"primary\"} 0",
    ] {
        assert!(text.contains(zero), "{zero} before the first event");
    }
    upstream.answered(200, Duration::ZERO);
    assert!(metrics.render().contains("portcullis_upstream_requests_total{code=\"200\",upstream=\"primary\"} 1"));
}

#[test]
fn what_a_removal_causes_is_told_before_its_series_end_for_good() {
    let metrics = Metrics::new().unwrap();
    let configured = |orgs: &[_], at| metrics.configured(Configured { orgs, ..Configured::default() }, at);
    let told = |at| {
        metrics.forget(at);
        metrics.render().lines().filter(|line| line.contains("org=\"acme\"")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (whole, at) = (acme(&["gpt-5"]), |seconds: u64| Mono(seconds * 1_000_000_000));
    configured(std::slice::from_ref(&whole), at(0));
    let before = told(at(0)).len();
    let mut held = Some(metrics.org(&whole.0));
    let counts = |org: &OrgSeries| {
        org.closed(Ending::Severed, Some(Code::OrganizationUnknown));
        org.request(Some(Route::Chat), 403);
    };
    configured(&[], at(1));
    held.iter().for_each(|org| counts(org));
    let cut = "portcullis_severed_streams_total{cause=\"organization_unknown\",org=\"acme\"} 1".to_owned();
    let last = told(at(300));
    assert!(last.len() >= before && last.contains(&cut), "{last:#?}");
    assert_eq!(told(at(1000)), last, "while somebody may count there");
    held.iter().for_each(|org| counts(org));
    held.take();
    assert_eq!(told(at(1000)), Vec::<String>::new());
    configured(std::slice::from_ref(&whole), at(1001));
    assert_eq!(told(at(1001)).len(), before, "it begins anew");
    counts(&metrics.org(&whole.0));
    configured(&[], at(1002));
    configured(std::slice::from_ref(&whole), at(1003));
    assert!(told(at(9999)).contains(&cut), "who returns in time goes on");
}

#[test]
fn a_model_that_is_named_no_more_counts_as_other_in_every_family() {
    let metrics = Metrics::new().unwrap();
    let model: ModelName = "gpt-5".parse().unwrap();
    let told = |named: &[&str]| {
        metrics.configured(Configured { orgs: &[acme(named)], ..Configured::default() }, Mono(0));
        let figures = metrics.model(&model);
        figures.first_token(Duration::from_millis(3));
        let used = Usage { output: 1, ..Usage::default() };
        metrics.org(&acme(&[]).0).charged(&figures, &used, Nano(5), "reported");
        let text = metrics.render();
        let of = |start: &str| text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok()).unwrap_or(0);
        ["gpt-5", "other"].map(|label| {
            let tokens: u64 = of(&format!("portcullis_output_tokens_total{{model=\"{label}\",org=\"acme\"}}"));
            (tokens, of(&format!("portcullis_time_to_first_token_seconds_count{{model=\"{label}\"}}")))
        })
    };
    assert_eq!(told(&["gpt-5"]), [(1, 1), (0, 0)]);
    assert_eq!(told(&[]), [(1, 1), (1, 1)]);
    assert_eq!(told(&["gpt-5"]), [(2, 2), (1, 1)]);
}

#[test]
fn what_absurd_maxima_reserve_never_wraps_a_counter() {
    let metrics = Metrics::new().unwrap();
    let org = metrics.org(&"acme".parse().unwrap());
    let told = || {
        let text = metrics.render();
        let line =
            text.lines().find(|line| line.starts_with("portcullis_quota_settled_tokens_total{direction=\"refunded"));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).unwrap()
    };
    let mut before = told();
    for reserved in [1000, u64::MAX, 1 << 60, u64::MAX, 1] {
        org.settled(reserved, 0);
        assert!(told() > before, "{reserved}");
        before = told();
    }
}

#[test]
fn of_very_many_organizations_those_are_shown_that_came() {
    let metrics = Metrics::new().unwrap();
    let org = |n: usize| (format!("org-{n}").parse().unwrap(), vec!["gpt-5".parse().unwrap()]);
    let orgs: Vec<(OrgId, Vec<ModelName>)> = (0..=FORESEEN).map(org).collect();
    let configured = |orgs| metrics.configured(Configured { orgs, ..Configured::default() }, Mono(0));
    configured(&orgs);
    assert!(!metrics.render().contains("org=\"org-"));
    metrics.org(&orgs[7].0).refused(Code::RouteNotFound);
    configured(&orgs);
    let text = metrics.render();
    assert!(text.contains("org=\"org-7\"") && !text.contains("org=\"org-8\""));
    assert_eq!((metrics.refusals(Code::RouteNotFound), metrics.refusals(Code::Overloaded)), (1, 0));
    assert_eq!(series(&metrics.render()), series(&text), "asking makes no series");
    configured(&orgs[8..]);
    metrics.forget(Mono(u64::MAX));
    let text = metrics.render();
    assert!(!text.contains("org=\"org-7\"") && text.contains("org=\"org-8\""), "of fewer all are shown");
}
