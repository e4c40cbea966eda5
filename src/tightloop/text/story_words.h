#pragma once

// The word lists of the story corpus, most frequent word first. A setting uses a prefix of each
// list, so lists only ever grow at the end: any other change changes the corpus.

namespace tightloop::story_words {

/// Even places are women, odd places are men: the pronoun follows from the place.
constexpr const char* kNames =
    "Anna Tom Mary Jack Lucy Ben Rosa Sam Emma Max Clara Leo Nora Paul Ella Hugo "
    "Ruby Finn Alice Oscar Maya Felix Iris Peter Julia Adam Sofia Ivan Grace Otto Hanna David "
    "Ada Simon Laura Victor Eva Martin Helen Karl Nina George Olga Henry Paula Arthur Sarah Robert "
    "Diana Albert Elena Bruno Flora Carlos Greta Daniel Ingrid Edgar Jane Frank Kate Gustav Lena "
    "Harold "
    "Mila Isaac Naomi James Olive Kevin Petra Lucas Rachel Marco Stella Nathan Tara Oliver Vera "
    "Patrick "
    "Wanda Quentin Yvonne Ralph Zoe Stefan Agnes Thomas Bella Ulrich Carmen Vincent Dora Walter "
    "Edith Xavier "
    "Fiona Yusuf Gloria Zachary Heidi Andrew Irene Bernard Judith Conrad Karen Dennis Linda Edward "
    "Monica Fred "
    "Nadia Gregory Ophelia Howard Penelope Igor Regina Jacob Sylvia Kurt Teresa Leonard Ursula "
    "Michael Violet Norman "
    "Wilma Orlando Yolanda Philip Zelda Roland Amelia Samuel Bridget Theodore Celia Vernon Daisy "
    "William Esther Alan "
    "Frida Boris Gina Cedric Hilda Desmond Ida Ernest Josephine Gilbert Kira Hector Lydia Ismael "
    "Miriam Julian";

/// One line a kind of place; the adjectives of the same line below describe places of that kind.
constexpr const char* kPlaces[] = {
    "harbour beach island lighthouse pier lagoon bay reef",
    "forest garden meadow orchard park jungle grove hedge",
    "library museum school gallery archive college academy bookshop",
    "market fair station circus stadium bazaar carnival arena",
    "mountain glacier cliff canyon volcano ridge summit plateau",
    "kitchen bakery cottage inn cafe farmhouse parlour teahouse",
    "cave cellar tunnel mine dungeon crypt sewer burrow",
    "castle palace temple cathedral tower fortress mansion abbey",
    "river lake pond stream waterfall creek marsh canal",
    "farm barn stable pasture mill ranch dairy vineyard",
    "desert dune oasis savanna prairie steppe mesa quarry",
    "workshop forge factory shipyard foundry sawmill brewery garage",
    "tundra igloo iceberg rink slope lodge chalet fjord",
    "ruin graveyard tomb monument shrine labyrinth pyramid catacomb",
    "street square bridge alley avenue plaza corner crossroads",
    "toyshop boutique pharmacy florist hatshop sweetshop bookstall laundry",
    "observatory laboratory planetarium greenhouse aquarium hospital clinic university",
    "theatre opera ballroom cinema playhouse pavilion bandstand auditorium",
    "airport hotel hostel dock depot terminal ferry caravan",
    "playground pool gym zoo treehouse maze fairground funhouse",
};
constexpr const char* kPlaceAdjectives[] = {
    "salty windy foggy sandy breezy tidal",
    "green leafy fragrant blooming shady mossy",
    "quiet dusty calm tidy serious silent",
    "noisy crowded busy lively cheerful colourful",
    "steep rocky icy rugged dangerous barren",
    "warm cosy snug homely welcoming comfortable",
    "dark damp gloomy cramped echoing musty",
    "grand ancient splendid lofty majestic stately",
    "cool clear shallow rippling deep murky",
    "muddy rustic earthy fertile sunlit grassy",
    "dry hot vast parched blazing endless",
    "smoky greasy sooty clanking oily grimy",
    "snowy frozen glassy chilly frosty wintry",
    "crumbling haunted forgotten eerie mysterious lonely",
    "narrow paved winding cobbled lamplit straight",
    "bright stylish shiny fancy gleaming neat",
    "modern spotless humming sterile advanced efficient",
    "glamorous dazzling festive musical glittering enchanting",
    "hectic restless bustling anonymous draughty chaotic",
    "playful joyful bouncy rowdy carefree exciting",
};

/// Each mood has its own ways to act on the same line below.
constexpr const char* kMoods =
    "tired happy sad afraid angry bored hungry curious thirsty cold "
    "proud shy nervous excited lost late sick dirty lucky clever";
constexpr const char* kActions[] = {
    "rested slept yawned dozed",
    "sang danced laughed cheered",
    "cried sighed wept moped",
    "hid trembled ran screamed",
    "shouted stamped frowned scowled",
    "whistled wandered paced fidgeted",
    "ate nibbled cooked feasted",
    "looked listened searched peeked",
    "drank sipped gulped swallowed",
    "shivered huddled sneezed snuggled",
    "boasted smiled posed strutted",
    "blushed whispered mumbled retreated",
    "stammered sweated hesitated fumbled",
    "jumped skipped clapped twirled",
    "called circled guessed turned",
    "hurried rushed dashed raced",
    "coughed groaned fainted sniffled",
    "bathed washed scrubbed rinsed",
    "won celebrated triumphed prospered",
    "planned reasoned calculated invented",
};

/// All start with a consonant: they follow "a".
constexpr const char* kObjects =
    "lantern kite map key book drum flute basket hat bell "
    "cake coin rope box ring mirror candle letter ball cup "
    "spoon blanket feather shell stone pearl whistle ladder bucket scarf "
    "mask sword shield brush pencil violin wheel lamp compass ribbon "
    "button needle hammer shovel saddle bottle barrel carpet pillow cushion "
    "teapot kettle plate bowl fork knife glass jug jar vase "
    "pot pan tray napkin towel soap comb wig crown necklace "
    "bracelet brooch medal badge flag banner poster painting statue puppet "
    "doll puzzle marble card dice game toy robot rocket telescope "
    "microscope magnet battery cable radio camera clarinet trumpet guitar piano "
    "harp cello banjo tambourine trombone song poem story novel diary "
    "notebook newspaper magazine ticket passport parcel suitcase backpack purse wallet "
    "belt jacket coat shirt sweater glove sock shoe boot slipper "
    "sandal dress skirt cap helmet raincoat tent hammock sled skateboard "
    "bicycle scooter wagon cart boat canoe raft paddle sail net "
    "fishhook bait trap cage nest twig branch leaf flower rose "
    "tulip daisy sunflower cactus seed nut pumpkin carrot potato tomato "
    "cabbage turnip lemon peach pear plum banana cherry melon grape "
    "sandwich pie muffin biscuit pancake cookie pretzel waffle sausage pizza "
    "cheese jewel ruby diamond crystal pebble brick tile plank hinge";

/// All start with a consonant.
constexpr const char* kColours =
    "red blue yellow purple black brown pink silver crimson violet turquoise scarlet";
constexpr const char* kAnimals =
    "fox dog cat horse rabbit goose bear wolf deer mouse "
    "hedgehog squirrel badger hen duck swan sheep goat pig cow "
    "donkey pony frog toad lizard snake turtle parrot crow raven "
    "hawk falcon sparrow pigeon robin beaver moose camel monkey tiger";
constexpr const char* kJobs =
    "baker sailor farmer teacher doctor painter carpenter singer hunter tailor "
    "gardener miller smith fisher nurse pilot writer dancer judge guard "
    "cook driver clerk poet potter weaver barber butcher grocer plumber "
    "lawyer dentist surgeon soldier captain knight wizard queen prince jester "
    "monk priest banker broker builder mason miner logger trapper shepherd "
    "rider jockey coach referee actor juggler magician drummer sculptor inventor";

constexpr const char* kWeather =
    "sunny rainy stormy cloudy misty mild golden grey crisp pale humid gentle blustery hazy still "
    "drizzly";
constexpr const char* kDayparts = "morning evening afternoon day night dawn dusk weekend";
constexpr const char* kFindVerbs =
    "found bought made saw borrowed painted mended carried built noticed dropped lifted "
    "polished wrapped drew fixed chose packed spotted collected unpacked discovered ordered "
    "received";
constexpr const char* kTouchVerbs =
    "admired wanted touched liked held studied praised needed loved ignored inspected envied "
    "remembered guarded examined shook tested weighed cleaned photographed described sketched "
    "tapped balanced";
/// One turn of the clock, in order.
constexpr const char* kHours = "one two three four five six seven eight nine ten eleven twelve";

}  // namespace tightloop::story_words
