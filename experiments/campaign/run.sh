#!/bin/sh
# Decides the ideas of ideas.txt, one after another; the same command again goes on where it was stopped.
# Run it in the folder that has outputs/ and the text data/tinyshakespeare/input.txt.
ideas=$(dirname "$0")/ideas.txt
while read -r change; do
    python -m lmtrain decide --baseline experiments=campaign/baseline --challenger "$change" \
        --campaign outputs/campaign --ideas 20 --seeds 12 --margin 0.005 --n-jobs 2 < /dev/null
    code=$?
    case $code in
        0 | 10 | 11) ;;     # keep, drop, undecided
        *) exit $code ;;
    esac
done < "$ideas"
python -m lmtrain decide --campaign outputs/campaign --list
