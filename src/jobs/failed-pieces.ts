/** Where pieces have failed that are not done yet: a job that goes through a disk has come no further than the first. */
export class FailedPieces {
  readonly #offsets = new Set<number>();

  /** Sees a piece through. */
  async during(offset: number, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#offsets.add(offset);
      throw error;
    }
    this.#offsets.delete(offset);
  }

  /** How far a job is that has begun all before `offset`. */
  reached(offset: number): number {
    let first = offset;
    for (const failed of this.#offsets) if (failed < first) first = failed;
    return first;
  }
}
