//! Branches of a tree.

/// The branches in front of a line. `last` tells for each level whether it is the last of its siblings.
pub(crate) fn branches(last: &[bool]) -> String {
    let Some((own, above)) = last.split_last() else {
        return String::new();
    };
    let mut marks: String = above
        .iter()
        .map(|last| if *last { "   " } else { "│  " })
        .collect();
    marks.push_str(if *own { "└─ " } else { "├─ " });
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_follow_the_siblings() {
        assert_eq!(branches(&[]), "");
        assert_eq!(branches(&[false]), "├─ ");
        assert_eq!(branches(&[false, true]), "│  └─ ");
        assert_eq!(branches(&[true, false, true]), "   │  └─ ");
    }
}
