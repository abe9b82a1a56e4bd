//! `p2pctl reset-scope`.

use crate::run::on;

#[test]
fn every_kind_is_listed() {
    let run = on("switch-four-nvme", &["reset-scope", "03:00.0"]);
    assert_eq!(
        run.stdout,
        "   KIND  BY       HITS
→  flr   itself   this function alone
   slot  02:00.0  this function alone

→ is the reset that Linux uses for 03:00.0 alone; the others must be requested
"
    );
    assert_eq!(run.status, 0);
}

#[test]
fn a_reset_that_hits_others_is_refused_to_who_does_not_own_them() {
    let run = on(
        "client-amd",
        &[
            "reset-scope",
            "07:00.0",
            "--kind",
            "any",
            "--owned",
            "04:00.0",
        ],
    );
    assert_eq!(
        run.stdout,
        "07:00.0: refused, a bus reset by 00:03.1 hits 1 function that you do not own

    FUNCTION                   GROUP  DRIVER
    07:00.0   GPU 10de:2684    g8     nouveau
    07:00.1   audio 10de:22ba  g8     snd_hda_intel  not owned

own all functions that it hits, or choose another kind: p2pctl reset-scope
  07:00.0
"
    );
    assert_eq!(run.status, 2);
    let run = on(
        "client-amd",
        &["reset-scope", "07:00.0", "--owned", "07:00.1"],
    );
    assert_eq!(run.status, 0);
    assert!(run.stdout.contains("you own all of them"), "{}", run.stdout);
}

#[test]
fn a_kind_that_is_not_there_is_refused() {
    let run = on("client-amd", &["reset-scope", "07:00.0", "--kind", "func"]);
    assert_eq!(
        run.stdout,
        "07:00.0: refused, it has no reset of kind func\n  it has bus: p2pctl reset-scope 07:00.0\n"
    );
    assert_eq!(run.status, 2);
    let json = on(
        "client-amd",
        &["reset-scope", "07:00.0", "--kind", "func", "--json"],
    );
    assert_eq!(json.status, 2);
    assert!(json.json()["chosen"].is_null());
    let run = on(
        "client-amd",
        &["reset-scope", "07:00.0", "--kind", "gentle"],
    );
    assert_eq!(run.status, 1);
}
