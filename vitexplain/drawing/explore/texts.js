// All that the page says, in two languages. Names of files, categories and models stay as they are.

const NB = "\u00a0"; // French sets it before : ; ? ! and %

export const TEXTS = {
  en: {
    language: "Language",
    tour: "Take the tour", end: "End the tour", back: "Back", next: "Next",
    step: (number, of) => `Step ${number} of ${of}`,
    view: "Show", attention: "Attention", rollout: "Rollout", maps: "Maps of methods",
    norms: "Token norms", votes: "Patch votes",
    block: "Block", head: "Head", fused: "all, fused", fusion: "Head fusion",
    mean: "mean", max: "maximum", min: "minimum",
    ratio: "Discard ratio", start: "Start block",
    direction: "Direction", to: "what it attends to", from: "who attends to it",
    category: "Category", against: "against", blend: "Picture to map", grid: "Patch grid",
    smooth: "Smooth", tokens: "Tokens", all: "What the classifier reads", prediction: "Prediction after each block",
    help: "Point at a patch, or choose one with the arrow keys. Click, tap or Enter keeps it; Escape lets it go.",
    stage: "The picture in patches. Arrow keys choose a patch, Enter keeps it, Escape lets it go.",
    patch: (row, column) => `patch in row ${row}, column ${column}`,
    token: { class: "class token", distillation: "distillation token", register: (n) => `register token ${n}` },
    read: "what the classifier reads",
    saying: {
      attention: (token, block) => `Attention of the ${token}, block ${block}`,
      reads: (block) => `Attention of what the classifier reads, block ${block}`,
      from: (token, block) => `How much each token attends to the ${token}, block ${block}`,
      rollout: (token) => `Rollout: what reaches the ${token} through the blocks`,
      rolloutReads: "Rollout: what reaches the classifier through the blocks",
      norms: (block) => `Length of each token after block ${block}`,
      votes: (block) => `Which category each patch alone would be, after block ${block}`,
    },
    value: (place, value) => `${place}: ${value}`,
    faithfulness: "faithfulness", best: "most faithful", everyCategory: "the same for every category",
    after: (block, list) => `After block ${block}: ${list}`,
    stays: (block) => `From block ${block} on the answer stays.`,
    others: "others",
    limits: "About this page",
    exact: "Rollout is calculated in this page as the tool does it.",
    stored: (bits, error) => `Attention is stored in ${bits} bits: each value to within ${error} of the largest in its row.`,
    onlyFused: "The model has too many heads for one page: their mean, maximum and minimum are here, not each of them.",
    coarse: (side, rows, columns) => `The model has too many patches for one page: squares of ${side} × ${side} are taken together, ${rows} × ${columns} of them. Maps calculated here are coarser than the tool's.`,
    counted: "Blocks and heads are counted from 1 here, in --block, --head and --start_block from 0.",
    measured: "Faithfulness: the answer's probability when the map's patches are shown first, minus when they are hidden first; -1 to 1, 0 for a random map.",
    methods: {},
    right: "As you said.", wrong: "Not so.",
    steps: {
      patches: {
        title: "Patches",
        text: (d) => `The model does not see ${d.patches === 196 ? "a picture" : "the picture"} as you do. It cuts it into ${d.rows} × ${d.columns} squares, the patches, and turns each of them into a list of numbers: a token.`,
        ask: "How many tokens does it work with?",
        choices: (d) => [d.patches, d.tokens, 3].filter((n, i, all) => all.indexOf(n) === i).map(String),
        answer: (d) => d.prefix
          ? `${d.tokens}: one for each of the ${d.patches} patches, and ${d.prefix} more that ${d.prefix === 1 ? "stands" : "stand"} for no place in the picture. ${d.prefix === 1 ? "It is" : "They are"} under the picture.`
          : `${d.tokens}: one for each patch, and no other.`,
      },
      position: {
        title: "Position",
        text: () => "A list of tokens has no above and no left. So the model is told where each patch was: by numbers added to its token, or by a twist or a bias in its attention. What it makes of that, it has learned.",
        ask: "In the first block, does a patch attend mostly to patches close to it?",
        choices: () => ["yes", "no"],
        answer: (d) => `The patch in the middle has ${d.near} of its attention within two patches of itself, heads averaged. Were it spread evenly, that would be ${d.even}.`,
      },
      reads: {
        title: "Class token",
        text: (d) => d.classToken
          ? "In the end one list of numbers must stand for the whole picture. This model has a token for it, the class token: it starts out the same for every picture, and gathers what it needs from the patches."
          : `In the end one list of numbers must stand for the whole picture. This model has no class token: its classifier reads ${d.readout}.`,
        ask: "Is what the classifier reads the token of the first patch, in the upper left corner?",
        choices: () => ["yes", "no"],
        answer: (d) => d.classToken
          ? "No. It comes first in the list, but it is of no place in the picture. What you see is which patches it attends to in the last block."
          : "No: it is made of all of them. What you see is what they attend to in the last block.",
      },
      head: {
        title: "One head",
        text: () => "In each block several heads look at the tokens side by side. A head compares a query of each token with a key of each other; a softmax makes shares of it, and every row sums to 1. Here is one head of the last block.",
        ask: "Does the brightest patch of this head have the most attention of the other heads of this block, too?",
        choices: () => ["of all", "of some", "of none"],
        answer: (d) => `Of the ${d.others} other heads, ${d.agree} ${d.agree === 1 ? "has" : "have"} the most attention there. Try the slider “Head”.`,
      },
      blocks: {
        title: "Many heads, many blocks",
        text: (d) => `The model has ${d.blocks} blocks, one after the other. What one has gathered, the next one attends to.`,
        ask: "Where is the attention of what the classifier reads spread over more patches: in the first block or in the last?",
        choices: () => ["in the first", "in the last"],
        answer: (d) => `In the first block it is spread over as much as ${d.first} patches would be that share it evenly; in the last over ${d.last}. Try the slider “Block”.`,
      },
      rollout: {
        title: "Rollout",
        text: () => "To see through all blocks, their attention is multiplied: what reached a token that reached a token. Each matrix also gets a 1 for the token itself, since a block adds to a token and does not replace it. The discard ratio leaves the weakest paths out.",
        ask: "More of the weakest paths are left out. Does the map cover more patches, or fewer?",
        choices: () => ["more", "fewer"],
        answer: (d) => `With nothing left out it is spread over ${d.all} patches, with 0.9 left out over ${d.few}. The picture of the model is the same: this number is your choice, so say it when you show a map.`,
      },
      category: {
        title: "One category",
        text: (d) => d.second
          ? `Attention says where the model looked, not what for. Methods with a category follow the gradient of its logit. The likeliest here are “${d.first}” and “${d.second}”.`
          : "Attention says where the model looked, not what for. Methods with a category follow the gradient of its logit.",
        ask: "Attention rollout for the first and for the second category: are the maps the same?",
        choices: () => ["yes", "no"],
        answer: (d) => d.alike === null
          ? "Yes: rollout knows nothing of categories. A method with a category asks anew for each."
          : `Yes: rollout knows nothing of categories. The two maps of ${d.method}, which does, have a correlation of ${d.alike}.`,
      },
      limits: {
        title: "What it can't tell",
        text: () => "A map is bright where, by some rule, much comes from. That is no reason, and no proof. One test: show the model the map's patches first, then hide them first. If the map is right about what counts, its answer comes and goes with them. That is its faithfulness.",
        ask: "Are all maps of one category equally faithful?",
        choices: () => ["yes", "no"],
        answer: (d) => d.best === null
          ? "They are not: measure it, with --compare. This page has no such figures, as the model has no categories or no maps were asked for."
          : `Here they go from ${d.worst} (${d.worstName}) to ${d.bestValue} (${d.bestName}). On another picture it may be the other way round: one picture is an example, not a result.`,
      },
    },
  },
  fr: {
    language: "Langue",
    tour: "Suivre la visite guidée", end: "Quitter la visite", back: "Retour", next: "Suite",
    step: (number, of) => `Étape ${number} sur ${of}`,
    view: "Montrer", attention: "Attention", rollout: "Rollout", maps: "Cartes des méthodes",
    norms: "Normes des tokens", votes: "Votes des patchs",
    block: "Bloc", head: "Tête", fused: "toutes, fusionnées", fusion: "Fusion des têtes",
    mean: "moyenne", max: "maximum", min: "minimum",
    ratio: "Part écartée", start: "Premier bloc",
    direction: "Sens", to: "ce qu’il regarde", from: "qui le regarde",
    category: "Catégorie", against: "contre", blend: "De l’image à la carte", grid: "Grille des patchs",
    smooth: "Lisser", tokens: "Tokens", all: "Ce que lit le classifieur", prediction: "Prédiction après chaque bloc",
    help: `Pointez un patch, ou choisissez-le avec les flèches du clavier. Un clic, un appui ou Entrée le retient${NB}; Échap le relâche.`,
    stage: "L’image découpée en patchs. Les flèches choisissent un patch, Entrée le retient, Échap le relâche.",
    patch: (row, column) => `patch ligne ${row}, colonne ${column}`,
    token: { class: "jeton de classe", distillation: "token de distillation", register: (n) => `token registre ${n}` },
    read: "ce que lit le classifieur",
    saying: {
      attention: (token, block) => `Attention, bloc ${block}${NB}: ce que regarde le ${token}`,
      reads: (block) => `Attention, bloc ${block}${NB}: ce que regardent les tokens lus par le classifieur`,
      from: (token, block) => `Attention, bloc ${block}${NB}: combien chaque token regarde le ${token}`,
      rollout: (token) => `Rollout${NB}: ce qui atteint le ${token} à travers les blocs`,
      rolloutReads: `Rollout${NB}: ce qui atteint le classifieur à travers les blocs`,
      norms: (block) => `Longueur de chaque token après le bloc ${block}`,
      votes: (block) => `La catégorie que donnerait chaque patch à lui seul, après le bloc ${block}`,
    },
    value: (place, value) => `${place}${NB}: ${value}`,
    faithfulness: "fidélité", best: "la plus fidèle", everyCategory: "la même pour toutes les catégories",
    after: (block, list) => `Après le bloc ${block}${NB}: ${list}`,
    stays: (block) => `À partir du bloc ${block}, la réponse ne change plus.`,
    others: "autres",
    limits: "À propos de cette page",
    exact: "Le rollout est calculé dans cette page comme par l’outil.",
    stored: (bits, error) => `L’attention est enregistrée sur ${bits} bits${NB}: chaque valeur à ${error} près de la plus grande de sa ligne.`,
    onlyFused: `Le modèle a trop de têtes pour une seule page${NB}: leur moyenne, leur maximum et leur minimum y sont, mais pas chacune d’elles.`,
    coarse: (side, rows, columns) => `Le modèle a trop de patchs pour une seule page${NB}: ils sont regroupés en carrés de ${side} × ${side}, soit ${rows} × ${columns}. Les cartes calculées ici sont plus grossières que celles de l’outil.`,
    counted: "Les blocs et les têtes sont comptés ici à partir de 1, dans --block, --head et --start_block à partir de 0.",
    measured: `Fidélité${NB}: la probabilité de la réponse quand on montre d’abord les patchs de la carte, moins celle quand on les cache d’abord${NB}; de -1 à 1, 0 pour une carte au hasard.`,
    methods: {
      attention_rollout: "rollout d’attention", grad_rollout: "rollout d’attention par gradient",
      value_rollout: "rollout pondéré par les valeurs", relevance: "pertinence (relevance)",
      attention: "attention d’un bloc", gradcam: "Grad-CAM", attnlrp: "AttnLRP", legrad: "LeGrad",
      consensus: "consensus de quatre méthodes", integrated_gradients: "gradients intégrés",
      occlusion: "occlusion",
    },
    right: "Vous l’aviez dit.", wrong: "Eh bien non.",
    steps: {
      patches: {
        title: "Patchs",
        text: (d) => `Le modèle ne voit pas l’image comme vous. Il la découpe en ${d.rows} × ${d.columns} carrés, les patchs, et fait de chacun une liste de nombres${NB}: un token.`,
        ask: `Avec combien de tokens travaille-t-il${NB}?`,
        choices: (d) => [d.patches, d.tokens, 3].filter((n, i, all) => all.indexOf(n) === i).map(String),
        answer: (d) => d.prefix
          ? `${d.tokens}${NB}: un pour chacun des ${d.patches} patchs, et ${d.prefix} de plus, qui ne ${d.prefix === 1 ? "correspond" : "correspondent"} à aucun endroit de l’image. On ${d.prefix === 1 ? "le" : "les"} trouve sous l’image.`
          : `${d.tokens}${NB}: un par patch, et aucun autre.`,
      },
      position: {
        title: "Position",
        text: () => `Une liste de tokens n’a ni haut ni gauche. On dit donc au modèle où se trouvait chaque patch${NB}: par des nombres ajoutés à son token, par une rotation ou par un biais dans l’attention. Ce qu’il en fait, il l’a appris.`,
        ask: `Dans le premier bloc, un patch regarde-t-il surtout les patchs proches de lui${NB}?`,
        choices: () => ["oui", "non"],
        answer: (d) => `Le patch du milieu a ${d.near} de son attention à deux patchs de lui au plus, en moyenne sur les têtes. Répartie également, ce serait ${d.even}.`,
      },
      reads: {
        title: "Jeton de classe",
        text: (d) => d.classToken
          ? `À la fin, une seule liste de nombres doit représenter toute l’image. Ce modèle a pour cela un token, le jeton de classe${NB}: il est d’abord le même pour toutes les images, puis il recueille auprès des patchs ce dont il a besoin.`
          : `À la fin, une seule liste de nombres doit représenter toute l’image. Ce modèle n’a pas de jeton de classe${NB}: son classifieur lit «${NB}${d.readout}${NB}».`,
        ask: `Ce que lit le classifieur, est-ce le token du premier patch, en haut à gauche${NB}?`,
        choices: () => ["oui", "non"],
        answer: (d) => d.classToken
          ? "Non. Il est le premier de la liste, mais n’est à aucun endroit de l’image. Vous voyez les patchs qu’il regarde dans le dernier bloc."
          : `Non${NB}: c’est fait de tous les tokens. Vous voyez ce qu’ils regardent dans le dernier bloc.`,
      },
      head: {
        title: "Une tête",
        text: () => `Dans chaque bloc, plusieurs têtes regardent les tokens côte à côte. Une tête compare la requête (query) de chaque token à la clé (key) de tous les autres${NB}; une softmax en fait des parts, et chaque ligne a pour somme 1. Voici une tête du dernier bloc.`,
        ask: `Le patch le plus clair de cette tête l’est-il aussi pour les autres têtes de ce bloc${NB}?`,
        choices: () => ["pour toutes", "pour quelques-unes", "pour aucune"],
        answer: (d) => `Sur les ${d.others} autres têtes, ${d.agree} ${d.agree > 1 ? "ont" : "a"} là le plus d’attention. Essayez le curseur «${NB}Tête${NB}».`,
      },
      blocks: {
        title: "Plusieurs têtes, plusieurs blocs",
        text: (d) => `Le modèle a ${d.blocks} blocs, l’un après l’autre. Ce que l’un a recueilli, le suivant le regarde.`,
        ask: `Où l’attention de ce que lit le classifieur s’étend-elle sur plus de patchs${NB}: dans le premier bloc ou dans le dernier${NB}?`,
        choices: () => ["dans le premier", "dans le dernier"],
        answer: (d) => `Dans le premier bloc, elle s’étend autant que si ${d.first} patchs se la partageaient également${NB}; dans le dernier, ${d.last}. Essayez le curseur «${NB}Bloc${NB}».`,
      },
      rollout: {
        title: "Rollout",
        text: () => `Pour voir à travers tous les blocs, on multiplie leurs attentions${NB}: ce qui a atteint un token, qui en a atteint un autre. Chaque matrice reçoit aussi un 1 pour le token lui-même, car un bloc ajoute à un token, il ne le remplace pas. La part écartée laisse de côté les chemins les plus faibles.`,
        ask: `On écarte davantage de chemins faibles. La carte couvre-t-elle plus de patchs, ou moins${NB}?`,
        choices: () => ["plus", "moins"],
        answer: (d) => `Sans rien écarter, elle s’étend sur ${d.all} patchs${NB}; en écartant 0,9, sur ${d.few}. Le modèle n’a pas changé${NB}: ce nombre est votre choix, dites-le donc en montrant une carte.`,
      },
      category: {
        title: "Une catégorie",
        text: (d) => d.second
          ? `L’attention dit où le modèle a regardé, mais pas pour quoi. Les méthodes à catégorie suivent le gradient de son logit. Les plus probables ici sont «${NB}${d.first}${NB}» et «${NB}${d.second}${NB}».`
          : "L’attention dit où le modèle a regardé, mais pas pour quoi. Les méthodes à catégorie suivent le gradient de son logit.",
        ask: `Le rollout d’attention pour la première et pour la deuxième catégorie${NB}: est-ce la même carte${NB}?`,
        choices: () => ["oui", "non"],
        answer: (d) => d.alike === null
          ? `Oui${NB}: le rollout ne sait rien des catégories. Une méthode à catégorie recommence pour chacune.`
          : `Oui${NB}: le rollout ne sait rien des catégories. Les deux cartes de la méthode ${d.method}, qui en tient compte, ont une corrélation de ${d.alike}.`,
      },
      limits: {
        title: "Ce que cela ne dit pas",
        text: () => `Une carte est claire là d’où, selon une certaine règle, vient beaucoup. Ce n’est ni une raison, ni une preuve. Un test${NB}: montrer d’abord au modèle les patchs de la carte, puis les cacher d’abord. Si la carte dit vrai, la réponse vient et s’en va avec eux. C’est sa fidélité.`,
        ask: `Toutes les cartes d’une catégorie sont-elles aussi fidèles${NB}?`,
        choices: () => ["oui", "non"],
        answer: (d) => d.best === null
          ? `Non${NB}: mesurez-le avec --compare. Cette page n’a pas de tels chiffres, car le modèle n’a pas de catégories ou aucune carte n’a été demandée.`
          : `Ici, elles vont de ${d.worst} (${d.worstName}) à ${d.bestValue} (${d.bestName}). Sur une autre image, ce peut être l’inverse${NB}: une image est un exemple, pas un résultat.`,
      },
    },
  },
};
