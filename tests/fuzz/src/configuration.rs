//! Is every text taken for a configuration, or refused in words, without a panic?

use pg_iam_proxy::fuzzing;

/// What is told of one text: twenty mistakes, each with a line that is cut off.
const LONGEST_ANSWER: usize = 64 << 10;

/// Takes the input for a configuration file. The files that it names are not read.
pub fn configuration(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    check_answer(&fuzzing::configuration(text));
}

/// Takes each line of the input for a target URL of the command line.
pub fn target_url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for url in text.lines() {
        check_answer(&fuzzing::target_url(url));
    }
}

/// Takes the input for a users file. No line may be lost without a word.
pub fn users_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let (users, mistakes) = fuzzing::users_file(text);
    let entries = text
        .split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(';'));
    assert_eq!(users.len() + mistakes.len(), entries.count());
    assert!(mistakes.iter().all(|mistake| mistake.len() < 200));
}

fn check_answer(answer: &Result<(), String>) {
    if let Err(text) = answer {
        assert!(!text.is_empty() && text.len() < LONGEST_ANSWER, "{text}");
    }
}
