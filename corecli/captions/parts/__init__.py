"""What caption backends share: concepts, assignments, prompts, the judgment of answers, and files of answers."""
