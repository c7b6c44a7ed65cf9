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
    metrics.configured(std::slice::from_ref(&acme), &[], ["gpt-5".parse().unwrap()]);
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
fn removed_organizations_leave() {
    let metrics = Metrics::new().unwrap();
    let acme: OrgId = "acme".parse().unwrap();
    metrics.configured(std::slice::from_ref(&acme), &[], []);
    metrics.org(&acme).closed(Ending::Complete, None);
    assert!(metrics.render().contains("org=\"acme\""));
    metrics.configured(&[], &[], []);
    assert!(!metrics.render().contains("org=\"acme\""));
}
