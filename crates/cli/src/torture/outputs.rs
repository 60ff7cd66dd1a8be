//! What was found, for programs: JUnit's XML, annotations for GitHub, a page.

use blkproof_report::torture::{Suite, github, junit};

use super::Args;
use super::output::file;

/// Writes what was asked for beside the report.
pub(super) fn write(args: &Args, suites: &[Suite<'_>]) -> anyhow::Result<()> {
    if let Some(path) = &args.junit {
        file(path, &junit::xml(suites))?;
    }
    args.pages.write(suites)?;
    if args.github {
        let text = github::annotations(suites);
        // GitHub listens to both; standard output may have to be JSON alone.
        match args.output.is_json() {
            false => super::print(&text)?,
            true => eprint!("{text}"),
        }
    }
    Ok(())
}
