//! Commands that repeat a finding.

use blkproof_block::choice;
use blkproof_torture::plan::Plan;

use super::Case;

/// Sixteen hexadecimal digits by which two people can see that they have the same plan. Of its text, so that it is the
/// same as long as the text form is.
#[must_use]
pub fn plan_hash(plan: &Plan) -> String {
    let text = plan.to_string();
    let hash = text.as_bytes().chunks(8).fold(text.len() as u64, |hash, chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        choice::hash(hash, u64::from_le_bytes(word))
    });
    format!("{hash:016x}")
}

/// A word for a shell, in quotes if it needs them.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) && !word.starts_with('-') {
        return word.to_owned();
    }
    // A file whose name looks like an option is named from its folder.
    let word = if word.starts_with('-') { format!("./{word}") } else { word.to_owned() };
    format!("'{}'", word.replace('\'', "'\\''"))
}

impl Case<'_> {
    /// The command that shows it again: the plan's file if there is one, else the seed; a plan without either is in the
    /// command itself.
    #[must_use]
    pub fn replay_command(&self) -> String {
        match (self.plan_file, self.seed_command()) {
            (Some(file), _) => format!("blkproof replay {}", quoted(file)),
            (None, Some(command)) => command,
            (None, None) => self.here_command(),
        }
    }

    /// Repeats exactly this run, wherever it is pasted: the plan is in it. Many lines, the last one without an end.
    #[must_use]
    pub fn here_command(&self) -> String {
        let plan = self.plan.to_string();
        // A word that no line of the plan is.
        let mut end = "END".to_owned();
        while plan.lines().any(|line| line == end) {
            end.push('_');
        }
        let newline = if plan.ends_with('\n') { "" } else { "\n" };
        format!("blkproof replay - <<'{end}'\n{plan}{newline}{end}")
    }

    /// Finds it again from its seed, and shrinks it; with the same build and profile.
    #[must_use]
    pub fn seed_command(&self) -> Option<String> {
        let origin = self.origin?;
        let profile = origin.profile.map(|name| format!(" --profile {}", quoted(name))).unwrap_or_default();
        Some(format!("blkproof torture --target {}{profile} --seed {:#x}", quoted(&self.plan.target.name), origin.seed))
    }
}
