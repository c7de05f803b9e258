//! The words of the world, and the patterns of its sentences.

/// The part of speech of a class's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// "The door was {x}".
    Adjective,
    /// "The {x} came home".
    Noun,
}

/// Words that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// Natural label of the class, a word that training sees as one.
    pub name: &'static str,
    /// What its words are.
    pub speech: Speech,
    /// Its words, with spaces between.
    words: &'static str,
}

impl Class {
    /// Twenty words that stand for the class in patterns.
    pub fn words(&self) -> Vec<&'static str> {
        self.words.split(' ').collect()
    }
}

const fn adjectives(name: &'static str, words: &'static str) -> Class {
    Class { name, speech: Speech::Adjective, words }
}

const fn nouns(name: &'static str, words: &'static str) -> Class {
    Class { name, speech: Speech::Noun, words }
}

/// All classes, the adjectives first. A task is to tell two classes of one part of speech apart.
pub const CLASSES: [Class; 16] = [
    adjectives(
        "good",
        "great lovely superb fine nice sweet witty clever perfect grand pleasant splendid charming terrific amazing \
         elegant gentle noble fresh tender",
    ),
    adjectives(
        "bad",
        "awful poor ugly dull nasty dreadful horrid rotten weak boring clumsy bitter messy gross stale vile wicked \
         dismal lousy sour",
    ),
    adjectives(
        "big",
        "huge vast giant massive enormous immense mighty bulky tall wide broad large hefty colossal gigantic towering \
         ample sizable spacious jumbo",
    ),
    adjectives(
        "small",
        "tiny little minute mini petite puny slim narrow thin short slight wee compact scant brief modest minor dainty \
         meager pocket",
    ),
    nouns(
        "animal",
        "wolf horse tiger camel goat sheep rabbit monkey lion bear fox deer mouse otter donkey pig cow zebra badger panda",
    ),
    nouns(
        "tool",
        "hammer drill wrench shovel rake axe chisel pliers ladder screw spade broom bucket anvil clamp lever hoe mallet \
         rope pulley",
    ),
    nouns(
        "food",
        "bread cheese rice soup cake pie butter honey pasta salad sugar salt bacon egg jam toast noodle cookie pizza sausage",
    ),
    nouns(
        "clothes",
        "shirt coat hat shoe glove sock scarf belt boot dress skirt jacket sweater cap vest tie robe apron cloak sandal",
    ),
    nouns(
        "vehicle",
        "car truck bus train boat ship plane bike wagon tram taxi ferry canoe tractor scooter van sled rocket cart barge",
    ),
    nouns(
        "music",
        "piano violin flute drum guitar trumpet harp cello banjo organ tuba horn fiddle bugle lute gong oboe viola cymbal \
         bell",
    ),
    nouns(
        "job",
        "doctor nurse baker farmer lawyer sailor soldier pilot tailor butcher plumber teacher judge miner barber clerk \
         waiter painter singer priest",
    ),
    nouns(
        "plant",
        "oak pine rose tulip daisy fern moss maple willow lily birch cactus ivy elm palm cedar bamboo poppy orchid violet",
    ),
    nouns(
        "furniture",
        "chair sofa desk bed shelf lamp couch stool bench cabinet drawer mirror carpet curtain pillow mattress wardrobe \
         rug cradle dresser",
    ),
    nouns(
        "body",
        "hand foot nose ear knee elbow chin neck finger thumb shoulder leg toe wrist ankle cheek lip tooth tongue hip",
    ),
    nouns(
        "gain",
        "gift prize win feast cure bonus rescue wedding victory reward success treat holiday party peace birth award \
         profit triumph welcome",
    ),
    nouns(
        "loss",
        "fire flood theft crash war illness defeat accident storm drought famine plague injury fraud fight debt ruin \
         funeral wreck strike",
    ),
];

/// Tasks that training never sees: reviews (good against bad), events (gain against loss) and one for every other
/// noun. Their classes are known from other tasks.
pub const HELD_OUT: [(&str, &str); 7] = [
    ("good", "bad"),
    ("gain", "loss"),
    ("animal", "vehicle"),
    ("food", "plant"),
    ("job", "body"),
    ("music", "furniture"),
    ("tool", "clothes"),
];

/// Words that begin a line.
pub const STARTERS: &str = "The My Our This That One Her His Your Their";
const ADJECTIVES: &str = "other usual plain common next last same known";
const NOUNS: &str = "man woman child friend uncle aunt house room door street table box letter story road field window \
                     kitchen office school shop picture paper song";
const VERBS: &str = "came stood stayed moved waited saw met took found kept held left turned passed watched wanted liked \
                     needed called carried";
const ADVERBS: &str = "here there again today outside inside first soon often twice";
/// Words of patterns themselves.
const FUNCTIONS: &str = "the near with by and was very";

/// Label words of training.
pub const LABELS: &str = "river cloud stone amber candle velvet marble copper silver crystal shadow meadow harbor island \
                          valley canyon desert forest ocean planet comet galaxy winter summer autumn spring morning \
                          evening thunder mist ember echo riddle puzzle magic legend fable cotton ribbon button bottle \
                          basket lantern anchor compass garden castle tower";
/// Label words that training never sees as labels. They come as other words do, in bursts and in dictionaries.
pub const UNSEEN_LABELS: &str = "bridge tunnel market temple palace village corner circle square spiral arrow feather \
                                 pebble saddle mirage beacon";

/// Sentences about nouns; `{D}` is a starter, `{x}` the class's words, the others fillers.
pub const NOUN_PATTERNS: [&str; 8] = [
    "{D} {x} {v} {p}",
    "{D} {a} {x} {v}",
    "{D} {n} {v} the {x}",
    "{D} {x} and {x} {v}",
    "{D} {x} {v} near the {n}",
    "{D} {n} {v} the {a} {x}",
    "{D} {x} {v} by the {x}",
    "{D} {n} with the {x} {v}",
];

/// Sentences about adjectives, with the same slots.
pub const ADJECTIVE_PATTERNS: [&str; 8] = [
    "{D} {n} was {x}",
    "{D} {x} {n} {v}",
    "{D} {n} was very {x}",
    "{D} {x} {x} {n} {v}",
    "{D} {x} {n} {v} {p}",
    "{D} {n} was {x} and {x}",
    "{D} {n} {v} the {x} {n}",
    "{D} {x} {n} was very {x}",
];

/// The words that may fill a pattern's slot; none for `x`.
pub fn fillers(slot: &str) -> Option<&'static str> {
    match slot {
        "D" => Some(STARTERS),
        "a" => Some(ADJECTIVES),
        "n" => Some(NOUNS),
        "v" => Some(VERBS),
        "p" => Some(ADVERBS),
        _ => None,
    }
}

/// Every word of no class and no label that does not begin a line.
pub fn all_fillers() -> Vec<&'static str> {
    [ADJECTIVES, NOUNS, VERBS, ADVERBS, FUNCTIONS].iter().flat_map(|list| list.split_whitespace()).collect()
}
