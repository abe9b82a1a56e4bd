//! Partition of functions into IOMMU groups.

use serde::Serialize;

use crate::{Sbdf, Topology};

/// Functions, divided into groups. The groups have no numbers, because Linux reuses the numbers of deleted groups: only
/// the members of groups can be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    /// The groups, sorted by their first members. The members of each group are in ascending order.
    groups: Vec<Vec<Sbdf>>,
    /// Index into `groups` for each function, in ascending order of functions.
    places: Vec<(Sbdf, usize)>,
}

/// A function whose group differs between two sets of groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The function.
    pub sbdf: Sbdf,
    /// Its group in the first set, including itself. Empty if it has none.
    pub here: Vec<Sbdf>,
    /// Its group in the second set.
    pub there: Vec<Sbdf>,
}

impl Groups {
    /// The groups that the kernel has now.
    #[must_use]
    pub fn found(topology: &Topology) -> Self {
        Self::new(
            topology
                .functions()
                .iter()
                .filter_map(|function| Some((function.sbdf(), function.group()?))),
        )
    }

    /// Builds groups from functions and the identifier of each function's group.
    pub(crate) fn new<G: Ord + Copy>(members: impl IntoIterator<Item = (Sbdf, G)>) -> Self {
        let mut members: Vec<(G, Sbdf)> = members
            .into_iter()
            .map(|(sbdf, group)| (group, sbdf))
            .collect();
        members.sort_unstable();
        let mut groups: Vec<Vec<Sbdf>> = members
            .chunk_by(|a, b| a.0 == b.0)
            .map(|chunk| chunk.iter().map(|(_, sbdf)| *sbdf).collect())
            .collect();
        groups.sort_unstable();
        let mut places: Vec<(Sbdf, usize)> = groups
            .iter()
            .enumerate()
            .flat_map(|(place, group)| group.iter().map(move |sbdf| (*sbdf, place)))
            .collect();
        places.sort_unstable();
        Self { groups, places }
    }

    /// The groups, each with its members in ascending order.
    #[must_use]
    pub fn groups(&self) -> &[Vec<Sbdf>] {
        &self.groups
    }

    /// The group of a function, including itself. `None` if it has none.
    #[must_use]
    pub fn group_of(&self, sbdf: Sbdf) -> Option<&[Sbdf]> {
        self.groups.get(self.place(sbdf)?).map(Vec::as_slice)
    }

    /// Whether two functions are in the same group.
    #[must_use]
    pub fn together(&self, a: Sbdf, b: Sbdf) -> bool {
        let (a, b) = (self.place(a), self.place(b));
        a.is_some() && a == b
    }

    /// The functions whose groups differ between the two sets, or that only one of them contains, in ascending order.
    #[must_use]
    pub fn differences(&self, there: &Self) -> Vec<Difference> {
        let mut all: Vec<Sbdf> = self
            .places
            .iter()
            .chain(&there.places)
            .map(|(sbdf, _)| *sbdf)
            .collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter()
            .filter(|sbdf| self.group_of(*sbdf) != there.group_of(*sbdf))
            .map(|sbdf| Difference {
                sbdf,
                here: self.group_of(sbdf).unwrap_or_default().to_vec(),
                there: there.group_of(sbdf).unwrap_or_default().to_vec(),
            })
            .collect()
    }

    fn place(&self, sbdf: Sbdf) -> Option<usize> {
        let index = self
            .places
            .binary_search_by_key(&sbdf, |(member, _)| *member)
            .ok()?;
        self.places.get(index).map(|(_, place)| *place)
    }
}

impl Serialize for Groups {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.groups.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups_of(groups: &[&[&str]]) -> Groups {
        Groups::new(groups.iter().enumerate().flat_map(|(number, group)| {
            group
                .iter()
                .map(move |text| (text.parse().unwrap(), number))
        }))
    }

    #[test]
    fn numbers_of_groups_do_not_matter() {
        let a = groups_of(&[&["01:00.0", "00:01.0"], &["02:00.0"]]);
        let b = groups_of(&[&["02:00.0"], &["00:01.0", "01:00.0"]]);
        assert_eq!(a, b);
        assert_eq!(a.differences(&b), []);
        assert!(a.together("00:01.0".parse().unwrap(), "01:00.0".parse().unwrap()));
        assert!(!a.together("00:01.0".parse().unwrap(), "02:00.0".parse().unwrap()));
        assert!(!a.together("09:00.0".parse().unwrap(), "09:00.0".parse().unwrap()));
    }

    #[test]
    fn differences_name_both_sides() {
        let a = groups_of(&[&["00:01.0", "01:00.0"], &["02:00.0"]]);
        let b = groups_of(&[&["00:01.0"], &["01:00.0"], &["03:00.0"]]);
        let seen: Vec<_> = a
            .differences(&b)
            .iter()
            .map(|d| (d.sbdf.to_string(), d.here.len(), d.there.len()))
            .collect();
        assert_eq!(
            seen,
            [
                ("0000:00:01.0".to_owned(), 2, 1),
                ("0000:01:00.0".to_owned(), 2, 1),
                ("0000:02:00.0".to_owned(), 1, 0),
                ("0000:03:00.0".to_owned(), 0, 1)
            ]
        );
    }
}
