//! Series: bounded, and gone with what they count.

use super::*;
use crate::outcome::{Code, Ending};
use crate::tokens::{Nano, Usage};

fn series(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn strangers_and_unconfigured_models_mint_no_series() {
    let metrics = Metrics::new().unwrap();
    let acme: OrgId = "acme".parse().unwrap();
    let models = ["gpt-5".parse().unwrap()].into();
    metrics.configured(Configured { orgs: std::slice::from_ref(&acme), models, ..Configured::default() });
    let org = metrics.org(&acme);
    let act = |number: u16| {
        let model: ModelName = format!("made-up-{number}").parse().unwrap();
        let figures = metrics.model(&model);
        figures.first_token(Duration::from_millis(3));
        org.charged(&figures, &model, &Usage { input: 1, ..Usage::default() }, Nano(5), "reported");
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
fn organizations_begin_with_zeros_and_removed_ones_leave() {
    let metrics = Metrics::new().unwrap();
    let acme: OrgId = "acme".parse().unwrap();
    let purposes = ["research".parse().unwrap()];
    let (orgs, purposes) = (std::slice::from_ref(&acme), purposes.as_slice());
    metrics.configured(Configured { orgs, purposes, ..Configured::default() });
    let text = metrics.render();
    for zero in [
        "portcullis_purpose_requests_total{decision=\"deny\",org=\"acme\",purpose=\"research\"} 0",
        "portcullis_requests_total{code=\"200\",org=\"acme\",route=\"chat\"} 0",
        "portcullis_severed_streams_total{cause=\"organization_suspended\",org=\"acme\"} 0",
    ] {
        assert!(text.contains(zero), "{zero} before the first event");
    }
    metrics.org(&acme).closed(Ending::Complete, None);
    assert!(metrics.render().contains("org=\"acme\""));
    metrics.configured(Configured::default());
    assert!(!metrics.render().contains("org=\"acme\""));
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
    let orgs: Vec<OrgId> = (0..=FORESEEN).map(|n| format!("org-{n}").parse().unwrap()).collect();
    let configured = |orgs| metrics.configured(Configured { orgs, ..Configured::default() });
    configured(&orgs);
    assert!(!metrics.render().contains("org=\"org-"));
    metrics.org(&orgs[7]).refused(Code::RouteNotFound);
    configured(&orgs);
    let text = metrics.render();
    assert!(text.contains("org=\"org-7\"") && !text.contains("org=\"org-8\""));
    assert_eq!((metrics.refusals(Code::RouteNotFound), metrics.refusals(Code::Overloaded)), (1, 0));
    assert_eq!(series(&metrics.render()), series(&text), "asking makes no series");
    configured(&orgs[8..]);
    let text = metrics.render();
    assert!(!text.contains("org=\"org-7\"") && text.contains("org=\"org-8\""), "of fewer all are shown");
}
