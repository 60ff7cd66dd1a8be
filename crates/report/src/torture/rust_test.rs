//! The plan as a test to paste into a driver's own.

use blkproof_torture::target;

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
    let target = match case.target_expression {
        Some(expression) => expression.to_owned(),
        None if target::names().any(|ours| ours == name) => format!("target::find({name:?}).unwrap()"),
        None => format!(
            "&MyDriver /* whose name is {} */",
            safe(&format!("{name:?}")).replace("*/", "* /").replace("/*", "/ *")
        ),
    };
    format!(
        "{sentence}\
         #[test]\n\
         fn {function}() {{\n\
         \u{20}   use blkproof_torture::run::{{Settings, run}};\n\
         \u{20}   use blkproof_torture::{{plan::Plan, target}};\n\n\
         \u{20}   let plan: Plan = r{marks}\"{plan}\"{marks}.parse().unwrap();\n\
         \u{20}   let target: &dyn target::Target = {target};\n\
         \u{20}   let outcome = run(&plan, target, &Settings::default());\n\
         \u{20}   assert_eq!(outcome.findings, []);\n\
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
