//! The tasks that are part of the program, each a file as a user writes it.

/// The files, in the order of messages that list the tasks.
pub const FILES: [&str; 16] = [
    include_str!("builtin/sst2.yaml"),
    include_str!("builtin/en-cs.yaml"),
    include_str!("builtin/totto.yaml"),
    include_str!("builtin/dart.yaml"),
    include_str!("builtin/logic2text.yaml"),
    include_str!("builtin/spider.yaml"),
    include_str!("builtin/mtop.yaml"),
    include_str!("builtin/events.yaml"),
    include_str!("builtin/objects.yaml"),
    include_str!("builtin/agnews.yaml"),
    include_str!("builtin/mmlu.yaml"),
    include_str!("builtin/mmlu-letters.yaml"),
    include_str!("builtin/antonym.yaml"),
    include_str!("builtin/capital.yaml"),
    include_str!("builtin/plural.yaml"),
    include_str!("builtin/translation.yaml"),
];
