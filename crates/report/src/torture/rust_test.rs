//! The plan as a test to paste into a driver's own.

use super::Case;
use crate::text::{safe, wrap};

/// The source of a test that fails until the bug is mended.
#[must_use]
pub fn source(case: &Case<'_>) -> String {
    let plan = case.plan.to_string();
    // As many marks as it takes for the text not to end its own literal.
    let marks = (1..).map(|count| "#".repeat(count)).find(|marks| !plan.contains(&format!("\"{marks}")));
    let marks = marks.unwrap_or_default();
    let name = &case.plan.target.name;
    let target = match (case.target_expression, name.as_str()) {
        (Some(expression), _) => expression.to_owned(),
        (None, "raw") => "blkproof_torture::target::Raw".to_owned(),
        (None, "qcow2") => "blkproof_torture::target::Qcow2".to_owned(),
        (None, "vdi") => "blkproof_torture::target::Vdi".to_owned(),
        (None, _) => {
            format!(
                "MyDriver /* whose name is {} */",
                safe(&format!("{name:?}")).replace("*/", "* /").replace("/*", "/ *")
            )
        }
    };
    format!(
        "{sentence}\
         #[test]\n\
         fn {function}() {{\n\
         \u{20}   blkproof_torture::check({target}).plan(r{marks}\"\n{plan}\"{marks});\n\
         }}\n",
        sentence = wrap(&safe(&case.sentence()), "/// ", 116),
        function = function(case),
    )
}

/// `vdi_reopen_3f2a`: an identifier that tells tests apart.
fn function(case: &Case<'_>) -> String {
    let words = format!("{} {}", case.plan.target.name, case.finding.signature.code);
    let mut name = String::new();
    for letter in words.chars() {
        match letter.is_ascii_alphanumeric() {
            true => name.push(letter.to_ascii_lowercase()),
            false if !name.ends_with('_') => name.push('_'),
            false => {}
        }
    }
    let name = name.trim_matches('_');
    let begin = if name.starts_with(|first: char| first.is_ascii_digit()) { "plan_" } else { "" };
    let hash = super::plan_hash(case.plan);
    format!("{begin}{name}_{}", hash.get(..4).unwrap_or_default())
}
