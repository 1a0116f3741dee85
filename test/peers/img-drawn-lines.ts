import { seededBelow } from '../kit/crash-states.js';
import { type Grammar, GRAMMARS, NAMES, OPTION_IMAGES, OWN_ANSWERS, SECRET, SIZES } from './img-grammar.js';
import { IS_LATER, LATER_ANSWERS } from './later-words.js';

const SECRETS = [
  '--object secret,id=sec0,data=wrong',
  '--object bad',
  '--object secret,id=sec0',
  '--object nothing,id=x',
];
const ENCRYPTED = /^[lw]\.|secret/;
/** How many images a line of a command needs, where that is not one. */
const USUAL: Readonly<Record<string, number>> = { compare: 2, convert: 2, dd: 0 };

const OWN = IS_LATER ? [...OWN_ANSWERS, ...LATER_ANSWERS] : OWN_ANSWERS;

/** Whether an image would get one as its backing file that has, or may have, it below. */
function isLoop(line: string): boolean {
  const place = (name: string): number => NAMES.findIndex(([other]) => other === name);
  const images = line.split(/[ =,]/).map(place);
  const below = [...line.matchAll(/(?:-[bB] |backing_file=)([\w.]+)/g)].map(([, name = '']) => place(name));
  return (
    !/^img (commit|bitmap|convert)/.test(line) &&
    below.some((at) => at >= Math.max(...images.filter((other) => other !== at), at))
  );
}

/** Draws lines of the grammars. */
export class DrawnLines {
  readonly #below: (bound: number) => number;
  readonly #commands: string[];

  constructor(seed: number) {
    this.#below = seededBelow(seed * 104_729);
    for (let i = 0; i < 20; i++) this.#below(2);
    const only = process.env['IMG_ONLY'];
    this.#commands = Object.entries(GRAMMARS)
      .filter(([name]) => only === undefined || only.split(',').includes(name))
      .flatMap(([name, { weight = 4 }]) => Array.from({ length: weight }, () => name));
  }

  /** One that both tools are to answer alike. */
  next(): string {
    for (;;) {
      const line = this.#draw();
      if (!OWN.some((own) => own.line.test(line)) && !isLoop(line)) return line;
    }
  }

  #draw(): string {
    const command = this.#one(this.#commands);
    const { words, operands, sizes, formatless, usual } = GRAMMARS[command] as Grammar;
    const [least, most] = operands;
    // A few words each, so that not every line has something wrong.
    const given = words.filter(() => this.#chance(2, words.length)).map((of) => this.#one(of));
    if (usual && !this.#chance(1, 4)) given.unshift(this.#one(usual));
    const byOptions = this.#chance(1, 8);
    const count = this.#chance(1, 6)
      ? least + this.#below(1 + most - least)
      : Math.min(most, USUAL[command] ?? 1);
    const images = Array.from({ length: count }, () => this.#image(byOptions));
    if (images.some(({ name }) => ENCRYPTED.test(name)) ? !this.#chance(1, 6) : this.#chance(1, 12))
      given.unshift(this.#chance(1, 8) ? this.#one(SECRETS) : SECRET);
    if (byOptions) given.push('--image-opts');
    const [first] = images;
    if (!formatless && first && (byOptions ? this.#chance(1, 8) : !this.#chance(1, 6)))
      given.push(this.#chance(1, 10) ? '-f ' + this.#one(NAMES)[1] : `-f ${first.format}`);
    const names = images.map(({ name }) => name);
    if (command === 'dd') given.push(...this.#ddOperands(byOptions));
    if (sizes && !this.#chance(1, 6)) names.push(this.#one(SIZES));
    if (command === 'bitmap') names.push(this.#one(['one', 'one', 'm', 'fresh', 'broken']));
    if (command === 'convert' && !this.#chance(1, 10))
      names.splice(-1, 1, this.#one(['new0', 'new1', 'new2']));
    return ['img', command, ...given, ...names].filter((word) => word !== '').join(' ');
  }

  #ddOperands(byOptions: boolean): string[] {
    const { name, format } = this.#image(byOptions);
    return [
      ...(byOptions || this.#chance(1, 5) ? [] : [`-f ${format}`]),
      ...(this.#chance(1, 10) ? [] : [`if=${name}`]),
      ...(this.#chance(1, 10) ? [] : [`of=${this.#one(['new0', 'new1'])}`]),
    ];
  }

  #image(byOptions: boolean): { name: string; format: string } {
    if (byOptions) return { name: this.#one(OPTION_IMAGES), format: 'qcow2' };
    const [name, format] = this.#one(NAMES);
    return { name, format };
  }

  #chance(times: number, of: number): boolean {
    return this.#below(of) < times;
  }

  #one<T>(of: readonly T[]): T {
    return of[this.#below(of.length)] as T;
  }
}
