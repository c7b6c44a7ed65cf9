//! Heads that pass and heads that do not, over both protocols.

use http::{Request, Version};
use proptest::prelude::*;

use super::*;

fn head(version: Version, method: &str, target: &str, lines: &[(&str, &str)]) -> Option<Parts> {
    let mut request = Request::builder().version(version).method(method).uri(target);
    for (name, value) in lines {
        request = request.header(*name, http::HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

fn verdict(version: Version, method: &str, target: &str, lines: &[(&str, &str)]) -> Result<Route, Code> {
    let names = ["gateway.example".to_owned()];
    let doors = Doors { server_names: &names, purpose_header: &HeaderName::from_static("portcullis-purpose") };
    let head = head(version, method, target, lines).expect("a head");
    judge(&head, doors).map(|gated| gated.route()).map_err(|refusal| refusal.code)
}

const JSON: (&str, &str) = ("content-type", "application/json");
const HERE: (&str, &str) = ("host", "gateway.example");

fn h1(method: &str, target: &str, lines: &[(&str, &str)]) -> Result<Route, Code> {
    verdict(Version::HTTP_11, method, target, lines)
}

#[test]
fn well_formed_heads_pass() {
    assert_eq!(h1("POST", "/v1/chat/completions", &[HERE, JSON]), Ok(Route::Chat));
    assert_eq!(h1("POST", "/v1/messages?beta=true", &[HERE, JSON]), Ok(Route::Messages));
    assert_eq!(h1("GET", "/v1/models?limit=1000", &[("host", "GATEWAY.example:8443")]), Ok(Route::Models));
    assert_eq!(h1("GET", "https://gateway.example/v1/models", &[HERE]), Ok(Route::Models));
    assert_eq!(h1("GET", "https://gateway.example:/v1/models", &[("host", "gateway.example:")]), Ok(Route::Models));
    assert_eq!(h1("GET", "/v1/models?after=a%2Fb%3A1%40eu%2b&before_id=&limit=01", &[HERE]), Ok(Route::Models));
    let odd = [
        HERE,
        ("content-type", "Application/JSON; charset=\"UTF8\";"),
        ("te", "deflate, gzip;q=0.3"),
        ("connection", "TE, close"),
        ("x-odd", ""),
        ("upgrade", ""),
        ("content-encoding", ""),
        ("expect", ""),
        ("expect", "100-continue"),
    ];
    assert_eq!(h1("POST", "/v1/responses", &odd), Ok(Route::Responses));
    let h2 = |target: &str, lines: &[(&str, &str)]| verdict(Version::HTTP_2, "GET", target, lines);
    assert_eq!(h2("https://gateway.example/v1/models", &[]), Ok(Route::Models));
    assert_eq!(h2("https://gateway.example/v1/models", &[HERE]), Ok(Route::Models));
}

#[test]
fn crooked_heads_are_refused_with_their_code() {
    use Code::{HostNotServed, MediaTypeNotSupported, MethodNotAllowed, RequestInvalid, RouteNotFound};
    for target in [
        "/v1//models",
        "/v1/../models",
        "/v1/%6dodels",
        "/v1/models;x",
        "/./v1/models",
        "/v1/models?x=1",
        "/v1/models?limit=1&limit=2",
        "/v1/models?limit=0",
        "/v1/models?limit=-1",
        "/v1/models?limit",
        "/v1/models?limit=+1",
        "/v1/models?after=%20",
        "/v1/models?after_id=%6",
        "/v1/models?before_id=%+6",
        "/v1/models?after=%00",
        "/v1/models?order=random",
        "*",
    ] {
        assert_eq!(h1("GET", target, &[HERE]), Err(RequestInvalid), "{target}");
    }
    assert_eq!(h1("GET", "/v1/model", &[HERE]), Err(RouteNotFound));
    assert_eq!(h1("GET", "/v1/models/", &[HERE]), Err(RouteNotFound));
    let told = super::target::route("/v1/responses/resp_1").unwrap_err().message;
    assert!(told.contains("GET /v1/models lists your models; answers are not kept here"), "{told}");
    assert_eq!(h1("HEAD", "/v1/models", &[HERE]), Err(MethodNotAllowed));
    assert_eq!(h1("OPTIONS", "/v1/models", &[HERE]), Err(MethodNotAllowed));
    assert_eq!(h1("TRACE", "/v1/models", &[HERE]), Err(RequestInvalid));
    assert_eq!(h1("GET", "/v1/models", &[]), Err(RequestInvalid));
    assert_eq!(h1("GET", "/v1/models", &[HERE, HERE]), Err(RequestInvalid));
    for host in ["elsewhere.example", "127.0.0.1:1", "[::1]:8443", "[::1]"] {
        assert_eq!(h1("GET", "/v1/models", &[("host", host)]), Err(HostNotServed), "{host}");
    }
    for host in ["[::1", "[::1]x", "[::1]:0", "[]", "[localhost]"] {
        assert_eq!(h1("GET", "/v1/models", &[("host", host)]), Err(RequestInvalid), "{host}");
    }
    assert_eq!(h1("GET", "/v1/models", &[("host", "user@gateway.example")]), Err(RequestInvalid));
    for port in ["0", "65536", "99999", "+443"] {
        let host = format!("gateway.example:{port}");
        assert_eq!(h1("GET", "/v1/models", &[("host", &host)]), Err(RequestInvalid), "{host}");
    }
    assert_eq!(h1("GET", "https://elsewhere.example/v1/models", &[HERE]), Err(RequestInvalid));
    assert_eq!(h1("POST", "/v1/responses", &[HERE]), Err(MediaTypeNotSupported));
    assert_eq!(h1("POST", "/v1/responses", &[HERE, JSON, JSON]), Err(MediaTypeNotSupported));
    assert_eq!(h1("POST", "/v1/responses", &[HERE, JSON, ("content-encoding", "gzip")]), Err(MediaTypeNotSupported));
    for line in [
        ("upgrade", "websocket"),
        ("connection", "x-purpose"),
        ("connection", "close, Host"),
        ("expect", "200-ok"),
        ("x_org", "acme"),
        ("user-agent", "é"),
        ("http2-settings", "x"),
    ] {
        assert_eq!(h1("POST", "/v1/responses", &[HERE, JSON, line]), Err(RequestInvalid), "{line:?}");
    }
    let many: Vec<(String, String)> = (0..65).map(|n| (format!("x-{n}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(h1("GET", "/v1/models", &many), Err(Code::HeadersTooLarge));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let target = "https://gateway.example/v1/responses";
        assert_eq!(verdict(version, "post", target, &[HERE, JSON]), Err(RequestInvalid), "{version:?}");
    }
    let h2 = |target: &str, lines: &[(&str, &str)]| verdict(Version::HTTP_2, "GET", target, lines);
    assert_eq!(h2("http://gateway.example/v1/models", &[]), Err(RequestInvalid));
    assert_eq!(h2("https://gateway.example/v1/models", &[("host", "other.example")]), Err(RequestInvalid));
    assert_eq!(h2("https://gateway.example/v1/models", &[("x-a", " padded")]), Err(RequestInvalid));
    for line in [("te", "gzip"), ("expect", "200-ok"), ("connection", "x-purpose")] {
        let lines = [("trailer", "x-sum"), line];
        assert_eq!(h2("https://gateway.example/v1/models", &lines), Err(RequestInvalid), "{line:?}");
    }
    assert_eq!(verdict(Version::HTTP_10, "GET", "/v1/models", &[HERE]), Err(RequestInvalid));
}

#[test]
fn a_routes_own_path_is_plain() {
    for route in Route::ALL {
        assert!(!target::is_crooked(route.path().as_bytes()), "{}", route.path());
    }
}

#[test]
fn exactly_one_purpose_is_declared() {
    let name = HeaderName::from_static("portcullis-purpose");
    let read = |lines: &[(&str, &str)]| {
        let head = head(Version::HTTP_11, "GET", "/", lines).expect("a head");
        declared(&head.headers, &name).map(|declared| declared.purpose.to_string()).map_err(|refusal| refusal.code)
    };
    assert_eq!(read(&[("portcullis-purpose", "incident-response")]), Ok("incident-response".into()));
    assert_eq!(read(&[("x-purpose", "a")]), Ok("a".into()));
    assert_eq!(read(&[]), Err(Code::PurposeMissing));
    for lines in [
        &[("portcullis-purpose", "a"), ("portcullis-purpose", "a")][..],
        &[("portcullis-purpose", "a"), ("x-purpose", "a")],
        &[("portcullis-purpose", "a,b")],
        &[("portcullis-purpose", "")],
        &[("portcullis-purpose", "A")],
        &[("portcullis-purpose", "ä")],
    ] {
        assert_eq!(read(lines), Err(Code::PurposeInvalid), "{lines:?}");
    }
    let head = head(Version::HTTP_11, "GET", "/", &[("x-purpose", "a"), ("portcullis-case", "no spaces please")]);
    let declared = declared(&head.expect("a head").headers, &name).expect("the purpose is judged before the case");
    assert_eq!(declared.case.map_err(|refusal| refusal.code), Err(Code::CaseInvalid));
}

proptest! {
    #[test]
    fn whatever_passes_is_a_route(target in "/[ -~]{0,40}", method in "(GET|POST|PUT|HEAD)") {
        let Some(head) = head(Version::HTTP_11, &method, &target, &[HERE, JSON]) else { return Ok(()) };
        let names = ["gateway.example".to_owned()];
        let doors = Doors { server_names: &names, purpose_header: &HeaderName::from_static("portcullis-purpose") };
        if let Ok(gated) = judge(&head, doors) {
            prop_assert_eq!(gated.route().path(), head.uri.path());
            prop_assert_eq!(gated.route().method(), method);
        }
    }
}
