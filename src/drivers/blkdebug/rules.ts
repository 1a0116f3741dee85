import type { IoType } from './events.js';
import type { DelayRule, InjectRule, StateRule } from './options.js';

const SECTOR_BYTES = 512;

/** Rules as they are by now, plain JSON. */
export interface RulesMemory {
  state: number;
  inject: Array<Omit<InjectRule, 'ioTypes'> & { ioTypes: IoType[] }>;
  setState: StateRule[];
  /** Indexes of those of `inject`. */
  armed: number[];
}

/**
 * Which requests fail: an event arms its rules in place of those armed before, and a request fails by the first
 * armed rule that fits it. States let rules depend on the events so far.
 */
export class ErrorRules {
  readonly #inject: InjectRule[];
  readonly #setState: readonly StateRule[];
  #state = 1;
  #armed: InjectRule[] = [];

  constructor(inject: readonly InjectRule[], setState: readonly StateRule[]) {
    this.#inject = [...inject];
    this.#setState = setState;
    // The one event that nobody announces: the node has come to be.
    this.fire('none');
  }

  static from({ state, inject, setState, armed }: RulesMemory): ErrorRules {
    const all = inject.map(({ ioTypes, errno, ...rule }) => ({ ...rule, errno, ioTypes: new Set(ioTypes) }));
    const rules = new ErrorRules(all, setState);
    rules.#state = state;
    rules.#armed = armed.flatMap((index) => all[index] ?? []);
    return rules;
  }

  get memory(): RulesMemory {
    return {
      state: this.#state,
      inject: this.#inject.map(({ ioTypes, ...rule }) => ({ ...rule, ioTypes: [...ioTypes] })),
      setState: [...this.#setState],
      armed: this.#armed.map((rule) => this.#inject.indexOf(rule)),
    };
  }

  get state(): number {
    return this.#state;
  }

  fire(event: string): void {
    const state = this.#state;
    const applies = (rule: { event: string; state: number }): boolean =>
      rule.event === event && (rule.state === 0 || rule.state === state);
    const armed = this.#inject.filter(applies);
    if (armed.length > 0) this.#armed = armed;
    for (const rule of this.#setState) if (applies(rule)) this.#state = rule.newState;
  }

  /** The rule by which a request fails; one that says `once` is spent. */
  take(ioType: IoType, offset: number, lengthBytes: number): InjectRule | undefined {
    const rule = this.#armed.find(
      ({ ioTypes, sector }) => ioTypes.has(ioType) && touches(sector, offset, lengthBytes),
    );
    if (rule?.once) {
      this.#armed = this.#armed.filter((other) => other !== rule);
      this.#inject.splice(this.#inject.indexOf(rule), 1);
    }
    return rule;
  }
}

/** A flush (no length) touches every sector. */
function touches(sector: number, offset: number, lengthBytes: number): boolean {
  if (sector < 0 || lengthBytes === 0) return true;
  const start = sector * SECTOR_BYTES;
  return start < offset + lengthBytes && start + SECTOR_BYTES > offset;
}

/** Longest delay of the rules that fit; 0 when none does. */
export function delayOf(rules: readonly DelayRule[], fits: (rule: DelayRule) => boolean): number {
  let delayMs = 0;
  for (const rule of rules) if (fits(rule) && rule.delayMs > delayMs) delayMs = rule.delayMs;
  return delayMs;
}
