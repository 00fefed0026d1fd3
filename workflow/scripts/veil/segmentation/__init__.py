"""The U-Net that judges synthetic pairs: trained on them, applied to whole volumes (floor 4)."""
