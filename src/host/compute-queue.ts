/** Items of several users in order of arrival, taken in turns: one of each user who has some. */
export class FairQueue<Item> {
  /** In order of turn; no list is empty. */
  readonly #lists = new Map<object, Item[]>();
  #count = 0;

  get count(): number {
    return this.#count;
  }

  countOf(user: object): number {
    return this.#lists.get(user)?.length ?? 0;
  }

  add(user: object, item: Item): void {
    const list = this.#lists.get(user);
    if (list) list.push(item);
    else this.#lists.set(user, [item]);
    this.#count++;
  }

  /** The next user's oldest item; that user's turn comes again after all others'. */
  take(): Item | undefined {
    for (const [user, list] of this.#lists) {
      const item = list.shift();
      this.#lists.delete(user);
      if (list.length > 0) this.#lists.set(user, list);
      this.#count--;
      return item;
    }
    return undefined;
  }

  /** Answers whether it was there. */
  remove(user: object, item: Item): boolean {
    const list = this.#lists.get(user);
    const at = list?.indexOf(item) ?? -1;
    if (!list || at < 0) return false;
    list.splice(at, 1);
    if (list.length === 0) this.#lists.delete(user);
    this.#count--;
    return true;
  }
}
