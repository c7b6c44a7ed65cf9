//! The declared purpose and its case reference: one line each, in a strict grammar.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::names::{CaseRef, PurposeId};
use crate::outcome::{Code, Refusal};

/// What the client says it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// The purpose.
    pub purpose: PurposeId,
    /// The case it belongs to, or why that is none: the purpose is judged first.
    pub case: Result<Option<CaseRef>, Refusal>,
}

/// Names of the purpose's line that are always read, beside the configured one.
static ALIASES: [HeaderName; 2] = [HeaderName::from_static("portcullis-purpose"), HeaderName::from_static("x-purpose")];
const CASE: HeaderName = HeaderName::from_static("portcullis-case");

/// Reads the purpose (under its configured name, `portcullis-purpose` or `x-purpose`) and `portcullis-case`.
///
/// # Errors
/// `purpose_missing` or `purpose_invalid`.
pub fn declared(headers: &HeaderMap, purpose_header: &HeaderName) -> Result<Declared, Refusal> {
    let others = ALIASES.iter().filter(|alias| *alias != purpose_header);
    let mut declared = None;
    for name in std::iter::once(purpose_header).chain(others) {
        for value in headers.get_all(name) {
            if declared.replace(value).is_some() {
                let message = "Declare exactly one purpose, in exactly one header line.";
                return Err(Refusal::new(Code::PurposeInvalid, message).at(purpose_header.as_str().to_owned()));
            }
        }
    }
    let Some(value) = declared else {
        let message = format!("Declare what this request is for in the {purpose_header} header.");
        return Err(Refusal::new(Code::PurposeMissing, message).at(purpose_header.as_str().to_owned()));
    };
    let purpose = PurposeId::from_bytes(value.as_bytes()).map_err(|error| {
        let message = format!("The purpose {error}: one value, no list.");
        Refusal::new(Code::PurposeInvalid, message).at(purpose_header.as_str().to_owned())
    })?;
    Ok(Declared { purpose, case: case(headers) })
}

fn case(headers: &HeaderMap) -> Result<Option<CaseRef>, Refusal> {
    let mut lines = headers.get_all(CASE).iter();
    let wrong = |message: String, why| Refusal::new(Code::CaseInvalid, message).at("portcullis-case").for_operator(why);
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(wrong("Give exactly one case reference.".into(), "more than one line")),
        (Some(value), None) => {
            let odd = |error| wrong(format!("The case reference {error}."), "its line breaks the grammar");
            parse(value).map(Some).map_err(odd)
        }
    }
}

fn parse(value: &HeaderValue) -> Result<CaseRef, crate::names::NotAName> {
    CaseRef::from_bytes(value.as_bytes())
}
