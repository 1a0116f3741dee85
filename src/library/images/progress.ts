/** Told how far an operation is; `total` may change while it runs. The unit is the operation's: bytes mostly. */
export type OnProgress = (done: number, total: number) => void;

export const NO_PROGRESS: OnProgress = () => undefined;
